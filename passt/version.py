"""The version, alone in a module that start-up can import for nothing."""

VERSION = "0.1.0"
