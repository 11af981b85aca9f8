package engine

import (
	"container/heap"
	"time"
)

// deadlines orders the peers that wait for a time. Idle peers are not in it.
type deadlines []*peer

var _ heap.Interface = (*deadlines)(nil)

func (d deadlines) Len() int           { return len(d) }
func (d deadlines) Less(i, j int) bool { return d[i].deadline.Before(d[j].deadline) }

func (d deadlines) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].place, d[j].place = i, j
}

// Push implements heap.Interface.
func (d *deadlines) Push(x any) {
	p, ok := x.(*peer)
	if !ok {
		panic("BUG: engine: not a peer in the heap of deadlines")
	}
	p.place = len(*d)
	*d = append(*d, p)
}

// Pop implements heap.Interface.
func (d *deadlines) Pop() any {
	last := len(*d) - 1
	p := (*d)[last]
	(*d)[last] = nil
	*d = (*d)[:last]
	p.place = -1
	return p
}

// set moves p to a deadline, or takes it out for the zero time.
func (d *deadlines) set(p *peer, t time.Time) {
	switch {
	case t.IsZero():
		if p.place >= 0 {
			heap.Remove(d, p.place)
		}
		p.deadline = t
	case p.place < 0:
		p.deadline = t
		heap.Push(d, p)
	case !t.Equal(p.deadline):
		p.deadline = t
		heap.Fix(d, p.place)
	}
}

// earlier returns the earlier of two times, of which the zero time is none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
