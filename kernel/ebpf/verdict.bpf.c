// Forward what arrives on a spliced TCP socket to the socket that it is spliced with.
//
// Attached to a map of sockets as BPF_SK_SKB_VERDICT, it runs for each segment that a socket of
// the map receives, with that socket locked: so nothing else writes its counts.  Two answers:
//
//   redirect   a worker of the kernel sends the data through the other socket.  Nothing holds
//              it back: the receive window of ours stays open.  So only as much as was granted.
//   pass       the data waits in our own socket, where it counts against the receive buffer, and
//              TCP stops the sender.  User space moves it.
//
// Data must not overtake: once something was passed everything is, until user space says that it
// has moved all of that.  It does so by writing as much to `consumed` as is in `passed`; whatever
// was passed in between makes them unequal again.  The first segment that is passed rings.
//
// A segment counts as a packet beside its bytes, as it takes room even if it has one byte.  See
// layout.py for the maps.
//
// The empty one is an end of file.  TCP has taken note already, and it must go no further: if it
// met data on their way out, behind which it would have to wait, the kernel would take it for a
// failure to send them (sk_psock_backlog(), at least from 5.19 to 6.18).
//
// Compiled by bcc (compile_bcc.py), with the user-space interface of the kernel only.

#include <uapi/linux/bpf.h>

#define SLOTS 8192

struct grant {
	u64 bytes;
	u64 packets;
	u64 consumed;
	u64 unused;
};

struct count {
	u64 bytes;
	u64 packets;
	u64 passed;
	u64 bells;
};

BPF_HASH(ends, u64, u32, SLOTS);
BPF_ARRAY(grants, struct grant, SLOTS);
BPF_ARRAY(counts, struct count, SLOTS);
BPF_SOCKHASH(socks, u32, SLOTS);
BPF_RINGBUF_OUTPUT(bell, 64);

int verdict(struct __sk_buff *skb)
{
	u64 cookie = bpf_get_socket_cookie(skb);
	u64 length = skb->len;
	u32 *found = ends.lookup(&cookie);
	u32 slot, peer;

	if (!length)
		return SK_DROP;
	if (!found)
		return SK_PASS;
	slot = *found;

	struct grant *grant = grants.lookup(&slot);
	struct count *count = counts.lookup(&slot);

	if (!grant || !count)
		return SK_PASS;
	if (count->passed != grant->consumed) {
		count->passed += length;
		return SK_PASS;
	}
	if (count->bytes + length > grant->bytes || count->packets >= grant->packets) {
		count->passed += length;
		count->bells++;
		bell.ringbuf_output(&slot, sizeof(slot), 0);
		return SK_PASS;
	}
	count->bytes += length;
	count->packets++;
	peer = slot ^ 1;
	return socks.sk_redirect_hash(skb, &peer, 0);
}
