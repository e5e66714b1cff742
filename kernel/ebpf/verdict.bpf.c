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
// A segment that was sent again may begin with data that have arrived before, if its bounds are
// others.  TCP's own readers skip them; the kernel's reader for maps does not (tcp_read_skb(), at
// least to 6.18), so the data would be there twice.  So we remember where the last segment ended,
// and cut off what is older.  Sequence numbers are where TCP keeps them for itself, at the
// beginning of the control block; the probe looks whether they are there.  What is remembered
// belongs to a connection: a new one has another number, its generation.  Where that is impossible
// (for want of memory, or more than a segment of 64 KiB is old), a special bell tells that the
// connection must be reset; nothing is redirected any more.
//
// Compiled by bcc (compile_bcc.py), with the user-space interface of the kernel only.

#include <uapi/linux/bpf.h>

#define SLOTS 8192
// bpf_skb_adjust_room() cuts off so much at a time; and so often, which the verifier goes through.
#define CUT 4095
#define CUTS 17
// With the number of a slot in a bell.
#define BROKEN (1U << 31)

struct grant {
	u64 bytes;
	u64 packets;
	u64 consumed;
	u64 generation;
};

struct count {
	u64 bytes;
	u64 packets;
	u64 passed;
	u32 end;
	u32 generation;
};

BPF_HASH(ends, u64, u32, SLOTS);
BPF_ARRAY(grants, struct grant, SLOTS);
BPF_ARRAY(counts, struct count, SLOTS);
BPF_SOCKHASH(socks, u32, SLOTS);
BPF_RINGBUF_OUTPUT(bell, 64);

int verdict(struct __sk_buff *skb)
{
	u64 cookie = bpf_get_socket_cookie(skb);
	u32 begin = skb->cb[0], end = skb->cb[1];
	u32 *found = ends.lookup(&cookie);
	u32 slot, peer;
	s32 old, cut;
	u64 length;
	int i;

	if (!skb->len)
		return SK_DROP;
	if (!found)
		return SK_PASS;
	slot = *found;

	struct grant *grant = grants.lookup(&slot);
	struct count *count = counts.lookup(&slot);

	if (!grant || !count)
		return SK_PASS;
	if (count->generation == (u32)grant->generation) {
		old = count->end - begin;
		for (i = 0; i < CUTS && old > 0; i++) {
			cut = old < CUT ? old : CUT;
			if (bpf_skb_adjust_room(skb, -cut, 0, 0))
				break;
			old -= cut;
		}
		if (old > 0) {
			count->passed++;
			slot |= BROKEN;
			bell.ringbuf_output(&slot, sizeof(slot), 0);
			return SK_DROP;
		}
	}
	count->generation = grant->generation;
	count->end = end;
	length = skb->len;
	// There was nothing but the end of file that is new.
	if (!length)
		return SK_DROP;
	if (count->passed != grant->consumed) {
		count->passed += length;
		return SK_PASS;
	}
	if (count->bytes + length > grant->bytes || count->packets >= grant->packets) {
		count->passed += length;
		bell.ringbuf_output(&slot, sizeof(slot), 0);
		return SK_PASS;
	}
	count->bytes += length;
	count->packets++;
	peer = slot ^ 1;
	return socks.sk_redirect_hash(skb, &peer, 0);
}
