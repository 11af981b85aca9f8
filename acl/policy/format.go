package policy

// Format returns the text in the canonical layout: indented by tabs, members
// aligned, comments kept, trailing commas where a list goes over lines. Only
// the syntax is checked, so that a document can be formatted while it is being
// written. Formatting twice gives the same as once. The error is an ErrorList,
// which wraps ErrInvalid. The argument is not written to.
func Format(text []byte) ([]byte, error) {
	r := newReader(append([]byte(nil), text...))
	v, ok := r.parse()
	if !ok {
		return nil, r.errs.sorted()
	}
	// Aligning a comment may move another one; a second pass settles it.
	v.Format()
	once := v.Pack()
	for range 4 {
		again := newReader(once)
		v, ok := again.parse()
		if !ok {
			break
		}
		v.Format()
		next := v.Pack()
		if string(next) == string(once) {
			return once, nil
		}
		once = next
	}
	return once, nil
}
