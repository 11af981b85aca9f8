package registry

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/warren-overlay/warren/acl/authority"
)

const (
	// maxLogin is the longest login in bytes: the longest address of mail
	// (RFC 5321, section 4.5.3.1.3).
	maxLogin = 254
	// maxHostText is the longest text about a host in bytes.
	maxHostText = 128
	// maxNameBase leaves room in a name of 63 bytes for the suffix that makes
	// it unique.
	maxNameBase = 56
)

// NormalLogin returns the one spelling of a login: lower-case. It accepts
// local@domain of ASCII letters, digits and a few marks, which is what policies
// can name, and nothing that could mean something to a shell, a configuration
// file or a screen. The error wraps ErrInvalid.
func NormalLogin(login string) (string, error) {
	normal := strings.ToLower(login)
	local, domain, ok := strings.Cut(normal, "@")
	if !ok || local == "" || len(login) > maxLogin {
		return "", refuse(ErrInvalid, "%q is not a login such as alice@example.com", cut(login))
	}
	for _, c := range []byte(local) {
		if !alphanumeric(c) && !strings.ContainsRune("._%+-", rune(c)) {
			return "", refuse(ErrInvalid, "%q is not a login: %q may not stand before the @", cut(login), c)
		}
	}
	for label := range strings.SplitSeq(domain, ".") {
		if !authority.ValidName(label) {
			return "", refuse(ErrInvalid, "%q is not a login: %q is no domain", cut(login), cut(domain))
		}
	}
	return normal, nil
}

func alphanumeric(c byte) bool { return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' }

// cut shortens text for a message.
func cut(s string) string {
	if len(s) > 80 {
		return strings.ToValidUTF8(s[:80], "") + "…"
	}
	return s
}

// nameBase makes a DNS label of what a host calls itself: the first label,
// lower-case, with everything else as dashes. It returns "device" where nothing
// is left, and puts that in front of what would read as an id such as "n12": a
// device must not be able to call itself like another one.
func nameBase(hostname string) string {
	first, _, _ := strings.Cut(hostname, ".")
	var b strings.Builder
	for _, c := range []byte(strings.ToLower(first)) {
		switch {
		case alphanumeric(c):
			b.WriteByte(c)
		case b.Len() > 0 && b.String()[b.Len()-1] != '-':
			b.WriteByte('-')
		}
		if b.Len() == maxNameBase {
			break
		}
	}
	name := strings.Trim(b.String(), "-")
	if !authority.ValidName(name) {
		return "device"
	}
	if digits, ok := strings.CutPrefix(name, "n"); ok && digits != "" && strings.Trim(digits, "0123456789") == "" {
		return strings.Trim(("device-" + name)[:min(len("device-"+name), maxNameBase)], "-")
	}
	return name
}

// freeName returns the first of base, base-1, base-2 … that no device but own
// has.
func (s *State) freeName(base string, own *Device) string {
	for n := 0; ; n++ {
		name := base
		if n > 0 {
			name += "-" + strconv.Itoa(n)
		}
		if id, taken := s.byName[name]; !taken || own != nil && id == own.ID {
			return name
		}
	}
}

// Validate refuses text that is too long, not UTF-8 or not printable: it reaches
// screens and logs. The error wraps ErrInvalid.
func (h *Host) Validate() error {
	for _, text := range []string{h.ProgramVersion, h.OS, h.OSVersion, h.Architecture} {
		if len(text) > maxHostText || !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
			return refuse(ErrInvalid, "the description of the host %q is too long or not printable", cut(text))
		}
	}
	return nil
}
