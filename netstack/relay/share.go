package relay

import "time"

const (
	// shareWindow is how long senders are measured: short against what a person
	// notices, long against a batch.
	shareWindow = 10 * time.Millisecond
	// minShare is what every sender may have in a window however many there are:
	// one full batch of the kernel's, 64 datagrams.
	minShare = 64 * ethernetMTU
	// maxShare is no limit any more: 10 Gbit/s.
	maxShare = 12 << 20
)

// fairShare keeps one sender from taking what all share: the server's time and
// the socket's buffer, which packets of all senders wait in. Nothing is limited
// while datagrams are taken as fast as they come. When they are not, each sender
// may have as many bytes in a window as would have been its part of the last
// one, so that those who ask for less lose nothing; while they are, the limit
// grows until it is none (max-min fairness by approximation, after Pan, Breslau,
// Prabhakar and Shenker, 2003).
type fairShare struct {
	began   time.Time
	window  uint64 // counts them
	limit   int    // bytes of one sender in a window; zero for none
	bytes   int    // admitted in this window
	senders int    // that sent in this window
	reads   int    // batches of this window
	full    int    // of these, those that left more behind
}

// senderWindow is one sender's part of a window.
type senderWindow struct {
	window uint64
	bytes  int
}

// admit reports whether a packet of a sender may pass.
func (f *fairShare) admit(w *senderWindow, size int) bool {
	if w.window != f.window {
		*w = senderWindow{window: f.window}
		f.senders++
	}
	if f.limit > 0 && w.bytes+size > f.limit {
		return false
	}
	w.bytes += size
	f.bytes += size
	return true
}

// observe ends the window where its time is over.
func (f *fairShare) observe(backlog bool, now time.Time) {
	f.reads++
	if backlog {
		f.full++
	}
	if now.Sub(f.began) < shareWindow {
		return
	}
	switch {
	case 4*f.full >= 3*f.reads && f.senders > 1: // else it was a burst
		f.limit = max(f.bytes/f.senders, minShare)
	case f.limit > 0:
		if f.limit += f.limit / 4; f.limit > maxShare {
			f.limit = 0
		}
	}
	f.window++
	f.began, f.bytes, f.senders, f.reads, f.full = now, 0, 0, 0, 0
}
