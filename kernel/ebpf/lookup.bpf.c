// Many ports, one listening socket: connections to open ports are led to it, local programs first.
//
// Two programs share the maps of lookup_layout.py.
//
//   lookup     attached to a network namespace (BPF_SK_LOOKUP), runs for each TCP segment that
//              belongs to no connection, before the kernel looks for who listens on its port.
//   listening  attached to the root of all control groups (BPF_CGROUP_SOCK_OPS), runs whenever
//              some socket begins to listen, right after it did.
//
// As `lookup` comes first, it would take connections away from programs that listen on the port
// themselves, and it cannot see them.  So `listening` counts, for each of our listeners and each
// port, the sockets of others that began to listen where it does:
//
//   user space writes   open     0x8000 | n: open, as n was found to be no obstacle; 0: closed
//   `listening` writes  taken    n, modulo 0x8000
//
// A port is open while the two agree.  From the moment that somebody listens they do not, until
// user space has looked, found the port free, and written the new number.
//
// Each of our listeners is bound to a port of its own, as any must be.  That one is closed, unless
// it is open by a rule.
//
// Compiled by bcc (compile_bcc.py), with the user-space interface of the kernel only.

#include <uapi/linux/bpf.h>

#define SLOTS 4
#define PORTS 65536
#define OPEN 0x8000
#define COUNT 0x7fff

#define TCP 6
#define INET 2

#define MAPPED bpf_htonl(0xffff)

#define IPV4 1
#define IPV6 2

// Where one of ours listens.  Masks are 0 where all of the field will do, and else have all bits set.
struct listener {
	u64 netns;
	u32 versions;
	u32 ifindex;
	u32 ifindex_mask;
	u32 port;
	u32 address[4];
	u32 address_mask;
	u32 unused;
};

struct place {
	u64 netns;
	u32 versions;
	u32 ifindex;
	u32 ifindex_mask;
	u32 address[4];
	u32 address_mask;
};

// As it stands: of two fields of a context, the compiler would choose one and then read, by way of
// a pointer that the verifier does not accept.
#define READ(field) (*(volatile u32 *)&(field))

struct numbers {
	u16 at[PORTS];
};

BPF_ARRAY(listeners, struct listener, SLOTS);
BPF_ARRAY(open, struct numbers, SLOTS);
BPF_ARRAY(taken, struct numbers, SLOTS);
BPF_TABLE("sockmap", u32, u32, socks, SLOTS);
BPF_RINGBUF_OUTPUT(bell, 1);

// Few branches from here on, as the verifier takes each both ways.

// All bits if x is not 0.  The compiler would make a comparison and a branch of it, if it knew.
static inline u32 full(u32 x)
{
	asm volatile("" : "+r"(x));
	return -((x | -x) >> 31);
}

// Whether something is in both places.
static inline int meet(struct listener *own, struct place *other)
{
	u64 netns = own->netns ^ other->netns;
	u32 address = (own->address[0] ^ other->address[0]) | (own->address[1] ^ other->address[1]) |
		      (own->address[2] ^ other->address[2]) | (own->address[3] ^ other->address[3]);
	u32 ifindex = own->ifindex ^ other->ifindex;

	address &= own->address_mask & other->address_mask;
	ifindex &= own->ifindex_mask & other->ifindex_mask;
	return (own->versions & other->versions) && !(netns | address | ifindex);
}

int lookup(struct bpf_sk_lookup *ctx)
{
	struct place arrival = {};
	int verdict = SK_PASS;
	u16 port = ctx->local_port;
	u32 six = full(ctx->family ^ INET);
	u32 slot;

	if (ctx->protocol != TCP)
		return SK_PASS;
	arrival.versions = (IPV6 & six) | (IPV4 & ~six);
	arrival.ifindex = ctx->ingress_ifindex;
	arrival.ifindex_mask = ~0;
	arrival.address[0] = (READ(ctx->local_ip6[0]) & six) | (READ(ctx->local_ip4) & ~six);
	arrival.address[1] = ctx->local_ip6[1] & six;
	arrival.address[2] = ctx->local_ip6[2] & six;
	arrival.address[3] = ctx->local_ip6[3] & six;
	arrival.address_mask = ~0;
#pragma unroll
	for (u32 n = 0; n < SLOTS; n++) {
		slot = n;
		struct listener *own = listeners.lookup(&slot);

		if (!own)
			continue;
		// The one that we are attached to.
		arrival.netns = own->netns;
		if (!meet(own, &arrival))
			continue;

		struct numbers *wanted = open.lookup(&slot);
		struct numbers *found = taken.lookup(&slot);

		if (!wanted || !found)
			continue;
		if (wanted->at[port] == (OPEN | found->at[port])) {
			struct bpf_sock *sock = (void *)socks.lookup(&slot);

			if (!sock)
				return verdict;
			// Refused if another program, attached before, has chosen one.
			bpf_sk_assign(ctx, sock, 0);
			bpf_sk_release(sock);
			return SK_PASS;
		}
		if (own->port == port)
			verdict = SK_DROP;
	}
	return verdict;
}

int listening(struct bpf_sock_ops *ctx)
{
	struct place other = {};
	u32 slot, record, six, mapped, a, b, c, d;
	u16 port, count;

	if (ctx->op != BPF_SOCK_OPS_TCP_LISTEN_CB)
		return 1;

	struct bpf_sock *sock = ctx->sk;

	if (!sock)
		return 1;
	six = full(ctx->family ^ INET);
	a = (READ(ctx->local_ip6[0]) & six) | (READ(ctx->local_ip4) & ~six);
	b = ctx->local_ip6[1] & six;
	c = ctx->local_ip6[2] & six;
	d = ctx->local_ip6[3] & six;
	// An IPv4-mapped address is one of IPv4.
	mapped = six & ~full(a | b | (c ^ MAPPED));
	other.address[0] = a | (d & mapped);
	other.address[1] = b;
	other.address[2] = c & ~mapped;
	other.address[3] = d & ~mapped;
	other.address_mask =
		full(other.address[0] | other.address[1] | other.address[2] | other.address[3]);
	// The wildcard of IPv6 may include IPv4 or not: that we do not see.
	other.versions = (IPV4 & (~six | mapped | ~other.address_mask)) | (IPV6 & six & ~mapped);
	other.ifindex = sock->bound_dev_if;
	other.ifindex_mask = full(other.ifindex);
	other.netns = bpf_get_netns_cookie(ctx);
	port = ctx->local_port;
#pragma unroll
	for (u32 n = 0; n < SLOTS; n++) {
		slot = n;
		struct listener *own = listeners.lookup(&slot);

		if (!own || !meet(own, &other))
			continue;

		struct numbers *wanted = open.lookup(&slot);
		struct numbers *found = taken.lookup(&slot);

		if (!wanted || !found)
			continue;
		count = found->at[port];
		found->at[port] = (count + 1) & COUNT;
		if (wanted->at[port] == (OPEN | count)) {
			record = n << 16 | port;
			bell.ringbuf_output(&record, sizeof(record), 0);
		}
	}
	return 1;
}
