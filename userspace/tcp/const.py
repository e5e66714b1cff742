"""Constants of the TCP translator; sizes in bytes, times in seconds unless named otherwise."""

from __future__ import annotations

from passt.userspace.loop import EPOLLET, EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLRDHUP

# Flags of the TCP header (RFC 9293, 3.1).
FIN = 0x01
SYN = 0x02
RST = 0x04
PSH = 0x08
ACK = 0x10

MASK = 0xFFFFFFFF

#: Largest window either way, and the largest scale that we announce.
MAX_WINDOW = 1 << 24
MAX_SCALE = 8
#: Window in handshakes, before anything is known of the other side.
INITIAL_WINDOW = 14600
#: MSS of a guest that sends no option (RFC 9293, 3.7.1), and the least that we believe:
#: what the kernel accepts for TCP_MAXSEG.
DEFAULT_MSS = 536
MIN_MSS = 88

#: Retransmissions of handshake segments, data and window probes before giving up.
MAX_RETRIES = 7
INITIAL_RTO = 1.0
#: Initial time-out for data if the handshake needed retransmissions (RFC 6298, 5.7).
RTO_AFTER_SYN_RETRY = 3.0

#: An acknowledgement waits this long at most for data that could carry it.
ACK_DELAY = 0.010
#: Bounds of the timer that looks again at a closed window or at the peer's progress.
RECHECK_MIN = 0.001
RECHECK_MAX = 0.256

#: Without a segment from the guest for this long a keep-alive is sent to it …
KEEPALIVE_INTERVAL = 30.0
#: … and without any event from either side for this long the connection is reset.
INACTIVITY_INTERVAL = 7200.0
#: Flows looked at per round in such a scan.
SCAN_BATCH = 512

#: A peer with a smaller round trip time than this many µs is on this machine.
LOW_RTT_US = 10
#: A send buffer below this multiple of bandwidth × delay is taken as bulk transfer.
BULK_FACTOR = 20

#: Of a tap queue of 1000 frames, what uploads may fill together.
TAP_QUEUE_FRAMES = 700

#: Acknowledged bytes that may stay in the socket's queue, and for how many small exchanges: a
#: system call less in each.  Only with receive buffers so large that the peer does not notice.
LAZY_DISCARD = 4096
LAZY_DISCARDS = 8
LAZY_DISCARD_RCVBUF = 65536

#: Seconds over which flows that the guest sends on are counted.
UPLOAD_COUNT_INTERVAL = 1.0

#: What is sent to the guest per flow and wake-up, in frames, and in bytes.  The guest's kernel
#: acknowledges at once, and the sooner that is read the less is there to be passed over in the next
#: peek: the queue is gone through piece by piece, of which there are thousands after a loss.
PUMP_FRAMES = 16
PUMP_BYTES = 1 << 18

LISTEN_BACKLOG = 128
#: Accepted connections that the guest has not answered.
OFFERS = 1024
#: A listener rests this long if it cannot accept (no descriptors), and after it had to refuse.
ACCEPT_PAUSE = 0.1
REFUSAL_PAUSE = 0.001

#: What a flow's socket is watched for, all the time.
FLOW_EVENTS = EPOLLIN | EPOLLOUT | EPOLLPRI | EPOLLRDHUP | EPOLLET

# States of a flow.
CONNECTING = 0  # guest's SYN received, socket connecting
SYN_RCVD = 1  # SYN|ACK sent to the guest
SYN_SENT = 2  # SYN sent to the guest, for an accepted socket
ESTABLISHED = 3
CLOSED = 4

STATE_NAMES = ("CONNECTING", "SYN_RCVD", "SYN_SENT", "ESTABLISHED", "CLOSED")
