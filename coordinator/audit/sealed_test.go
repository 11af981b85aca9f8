package audit

import (
	"crypto/rand"
	"errors"
	"strings"
	"testing"

	"github.com/warren-overlay/warren/acl/ident"
)

func TestSealedHead(t *testing.T) {
	signer, err := ident.NewSignerPrivate(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, err := ident.NewSignerPrivate(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	network := ident.Fingerprint{1}
	keys := []ident.SignerKey{other.Public(), signer.Public()}
	h := Head{Index: 12, Hash: Hash{3, 4}}
	text := string(h.Seal(network, signer))
	if got, err := OpenSealed([]byte(text), network, keys); err != nil || got != h {
		t.Fatalf("%q is %+v, %v", text, got, err)
	}
	if got, err := ParseHead(h.String()); err != nil || got != h {
		t.Errorf("%v is %+v, %v", h, got, err)
	}
	for name, c := range map[string]struct {
		text    string
		network ident.Fingerprint
		signers []ident.SignerKey
	}{
		"a lower index":         {strings.Replace(text, "12:", "11:", 1), network, keys},
		"another hash":          {strings.Replace(text, "0304", "0305", 1), network, keys},
		"another network":       {text, ident.Fingerprint{2}, keys},
		"a key of nobody":       {text, network, keys[:1]},
		"another key's name":    {strings.Replace(text, signer.Public().String(), other.Public().String(), 1), network, keys},
		"a signature cut short": {text[:len(text)-3] + "\n", network, keys},
		"nothing":               {"", network, keys},
		"half of it":            {text[:20], network, keys},
	} {
		if got, err := OpenSealed([]byte(c.text), c.network, c.signers); !errors.Is(err, ErrSealed) || got != (Head{}) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	for _, text := range []string{"", "1", "x:00", "1:00", "-1:" + strings.Repeat("0", 64)} {
		if _, err := ParseHead(text); !errors.Is(err, ErrMalformed) {
			t.Errorf("%q: %v", text, err)
		}
	}
}
