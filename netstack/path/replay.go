package path

// sessions remembers which pings were answered, for the last few sessions of
// the peer, so that a ping that is sent again gets no second answer. A session
// that is not remembered is taken as new: an old capture can win an answer
// then, which proves nothing to anyone, and a peer that restarted is never
// locked out, whatever its clock says. The live session is never forgotten for
// one that is not known, so captures do not push it out.
type sessions struct {
	seen [maxSessions]window // most recently used first
	live uint64              // that of the last ping from a path that works
	kept bool                // there is a live one
}

// maxSessions is how many sessions are remembered. One is live; a few more keep
// captures of earlier ones from taking turns.
const maxSessions = 4

// window is a sliding window over the sequence numbers of one session, as in
// RFC 6479.
type window struct {
	session uint64
	highest uint64
	bits    uint64 // bit i is highest-i
}

// fresh reports whether a ping was not seen before, and remembers it.
func (s *sessions) fresh(session, seq uint64) bool {
	if seq == 0 {
		return false
	}
	at := maxSessions - 1
	if s.kept && s.seen[at].session == s.live && s.seen[at].highest != 0 {
		at--
	}
	for i := range s.seen {
		if s.seen[i].highest != 0 && s.seen[i].session == session {
			at = i
			break
		}
	}
	w := s.seen[at]
	if w.highest == 0 || w.session != session {
		w = window{session: session, highest: seq}
	}
	switch {
	case seq > w.highest:
		w.bits <<= min(seq-w.highest, 64)
		w.highest = seq
	case w.highest-seq >= 64:
		return false
	}
	bit := uint64(1) << (w.highest - seq)
	if w.bits&bit != 0 {
		return false
	}
	w.bits |= bit
	copy(s.seen[1:at+1], s.seen[:at])
	s.seen[0] = w
	return true
}

// keep makes a session the live one, and reports whether another one was: the peer
// has started again, or somebody sends a capture from before that in its name.
func (s *sessions) keep(session uint64) (another bool) {
	another = s.kept && s.live != session
	s.live, s.kept = session, true
	return another
}
