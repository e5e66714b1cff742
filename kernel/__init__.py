"""What the product asks of the kernel or puts into it: links, namespaces, identities."""
