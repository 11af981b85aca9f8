package flowlog

import (
	"container/list"
	"net/netip"
	"time"

	"github.com/warren-overlay/warren/acl/filter"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/ruleset"
)

const (
	// MaxFlows bounds the records of flows that a Log keeps: 2 MB at most, a
	// tenth of what an idle node takes. The oldest give way.
	MaxFlows = 4096
	// MaxDenials bounds those of denials, apart from flows, so that neither
	// kind pushes the other out.
	MaxDenials = 4096
	// Window is for how long denials of one kind are one record.
	Window = 10 * time.Second
	// MaxKinds bounds the kinds of denials of one peer within a window; the
	// rest is one record with Others set. So a peer that scans all ports costs
	// 65 records in ten seconds, and leaves room for those of others.
	MaxKinds = 64
)

// Log keeps the latest records of one device.
type Log struct {
	nonce    uint64
	sequence uint64
	lost     uint64
	// evicted is the Sequence of the latest change that was pushed out.
	evicted uint64
	flows   records
	denials records
	// kinds are the denials whose window is open, byID the flows that are kept
	// and have not ended, and perPeer how many kinds each peer has.
	kinds   map[kind]*list.Element
	byID    map[uint64]*list.Element
	perPeer map[ident.NodeID]int
	// windows are the records of kinds, in the order of their ends.
	windows *list.List
}

// records keeps Records in the order of their last change.
type records struct {
	order *list.List // of *Record
	limit int
}

// kind is what denials have in common that are one record.
type kind struct {
	peer          ident.NodeID
	opener        filter.Direction
	local, remote netip.Addr
	port          uint16
	protocol      uint8
	reason        string
	rule          ruleset.RuleID
	epoch         ruleset.Epoch
	candidate     ruleset.Outlook
	others        bool
}

// window is an open kind.
type window struct {
	kind   kind
	ends   time.Time
	record *list.Element
}

// New returns an empty Log. nonce is random: it keeps the records of two runs of
// one device apart.
func New(nonce uint64) *Log {
	return &Log{
		nonce:   nonce,
		flows:   records{list.New(), MaxFlows},
		denials: records{list.New(), MaxDenials},
		kinds:   make(map[kind]*list.Element), byID: make(map[uint64]*list.Element),
		perPeer: make(map[ident.NodeID]int), windows: list.New(),
	}
}

// Add takes an event of the filter for the flows between two devices.
func (l *Log) Add(sides *Sides, e *filter.Event, now time.Time) {
	r := newRecord(l.nonce, sides, e, now)
	if e.Kind == filter.FlowDenied {
		l.deny(sides.Peer.Node, &r, now)
		return
	}
	if old, ok := l.byID[r.ID]; ok && e.Kind == filter.FlowEnded {
		r.merge(l.flows.order.Remove(old).(*Record))
		delete(l.byID, r.ID)
	}
	at := l.put(&l.flows, &r)
	if e.Kind == filter.FlowOpened {
		l.byID[r.ID] = at
	}
}

// Lose counts events that were lost before they came here.
func (l *Log) Lose(n uint64) { l.lost += n }

// Lost returns how many events and records were lost in all: those of Lose.
func (l *Log) Lost() uint64 { return l.lost }

// Sequence returns the Sequence of the latest change, 0 where there was none.
func (l *Log) Sequence() uint64 { return l.sequence }

func (l *Log) deny(peer ident.NodeID, r *Record, now time.Time) {
	k := kind{
		peer: peer, opener: r.Opener, local: r.Source.Address.Addr(), remote: r.Destination.Address.Addr(),
		port: r.Destination.Address.Port(), protocol: r.Protocol, reason: r.Reason, rule: r.Rule, epoch: r.Epoch,
		candidate: r.Candidate,
	}
	at, known := l.kinds[k]
	if !known && l.perPeer[peer] >= MaxKinds {
		k = kind{peer: peer, others: true}
		at, known = l.kinds[k]
		r.Others = true
	}
	if known {
		w := at.Value.(*window)
		counted := w.record.Value.(*Record)
		counted.Attempts++
		counted.End = r.End
		return
	}
	if !k.others {
		l.perPeer[peer]++
	}
	l.kinds[k] = l.windows.PushBack(&window{kind: k, ends: now.Add(Window), record: l.put(&l.denials, r)})
}

// put adds a record as the newest and makes room for it.
func (l *Log) put(to *records, r *Record) *list.Element {
	if to.order.Len() >= to.limit {
		oldest := to.order.Remove(to.order.Front()).(*Record)
		l.evicted = max(l.evicted, oldest.Sequence)
		if oldest.Allowed {
			delete(l.byID, oldest.ID)
		}
	}
	l.sequence++
	kept := *r
	kept.Sequence = l.sequence
	return to.order.PushBack(&kept)
}

// NextTimeout returns when HandleTimeout should be called next, and false where
// there is nothing to wait for.
func (l *Log) NextTimeout() (time.Time, bool) {
	if first := l.windows.Front(); first != nil {
		return first.Value.(*window).ends, true
	}
	return time.Time{}, false
}

// HandleTimeout closes the windows of denials that are over. A record that
// counted more than one counts as changed.
func (l *Log) HandleTimeout(now time.Time) {
	for first := l.windows.Front(); first != nil; first = l.windows.Front() {
		w := first.Value.(*window)
		if now.Before(w.ends) {
			return
		}
		l.windows.Remove(first)
		delete(l.kinds, w.kind)
		if !w.kind.others {
			if l.perPeer[w.kind.peer]--; l.perPeer[w.kind.peer] == 0 {
				delete(l.perPeer, w.kind.peer)
			}
		}
		r := w.record.Value.(*Record)
		if r.Attempts < 2 || r.Sequence <= l.dropped() {
			continue
		}
		l.denials.order.MoveToBack(w.record)
		l.sequence++
		r.Sequence = l.sequence
	}
}

// dropped returns the Sequence below which no denial is kept any more.
func (l *Log) dropped() uint64 {
	if first := l.denials.order.Front(); first != nil {
		return first.Value.(*Record).Sequence - 1
	}
	return 0
}

// Since returns the records that began or changed after the change with the
// given Sequence, oldest change first, at most limit. 0 asks from the beginning.
// gap says that changes in between were pushed out. The records are copies.
func (l *Log) Since(after uint64, limit int) (changed []Record, gap bool) {
	f, d := newer(l.flows.order, after), newer(l.denials.order, after)
	for len(changed) < limit && (f != nil || d != nil) {
		next := &f
		if f == nil || d != nil && d.Value.(*Record).Sequence < f.Value.(*Record).Sequence {
			next = &d
		}
		changed = append(changed, *(*next).Value.(*Record))
		*next = (*next).Next()
	}
	return changed, l.evicted > after
}

// Denials returns the records of the latest denials, n at most, the newest
// first. The records are copies.
func (l *Log) Denials(n int) (latest []Record) {
	for e := l.denials.order.Back(); e != nil && len(latest) < n; e = e.Prev() {
		latest = append(latest, *e.Value.(*Record))
	}
	return latest
}

// newer returns the first element after the Sequence, from the back: readers
// are nearly always almost up to date.
func newer(order *list.List, after uint64) *list.Element {
	var first *list.Element
	for e := order.Back(); e != nil && e.Value.(*Record).Sequence > after; e = e.Prev() {
		first = e
	}
	return first
}
