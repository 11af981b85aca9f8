package ident

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
)

func fill(n byte) *bytes.Reader { return bytes.NewReader(bytes.Repeat([]byte{n}, 64)) }

func TestIDs(t *testing.T) {
	if got, err := ParseNodeID("n12"); err != nil || got != 12 || got.String() != "n12" {
		t.Errorf("n12: %v, %v", got, err)
	}
	if got, err := ParseUserID("u3"); err != nil || got != 3 || got.String() != "u3" {
		t.Errorf("u3: %v, %v", got, err)
	}
	for _, bad := range []string{"", "n", "n0", "u1", "n01", "n-1", "n+1", "n1x", "n18446744073709551616", "12"} {
		if id, err := ParseNodeID(bad); !errors.Is(err, ErrMalformedID) || id != 0 {
			t.Errorf("%q: got %v, %v", bad, id, err)
		}
	}
}

func TestKeysAsText(t *testing.T) {
	private, err := NewNodePrivate(fill(7))
	if err != nil {
		t.Fatal(err)
	}
	want := private.Public()
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got NodeKey
	if err := json.Unmarshal(text, &got); err != nil || got != want || want.IsZero() {
		t.Errorf("%s read back as %v, %v", text, got, err)
	}
	digits := strings.TrimPrefix(want.String(), "nodekey:")
	for _, bad := range []string{
		"", digits, "mkey:" + digits, "nodekey:" + digits[1:], "nodekey:" + digits + "00",
		"nodekey:" + strings.ToUpper(digits), "nodekey:" + strings.Repeat("g", 64),
	} {
		kept := got
		if err := got.UnmarshalText([]byte(bad)); !errors.Is(err, ErrMalformedKey) || got != kept {
			t.Errorf("%q: got %v, %v", bad, got, err)
		}
	}
}

// TestPrivateKeysStaySecret formats private keys in every way that a log line
// or an error could, and looks for their bytes.
func TestPrivateKeysStaySecret(t *testing.T) {
	node, _ := NewNodePrivate(fill(0x5a))
	machine, _ := NewMachinePrivate(fill(0x5a))
	channel, _ := NewChannelPrivate(fill(0x5a))
	signer, _ := NewSignerPrivate(fill(0x5a))
	for _, key := range []any{node, &node, machine, &machine, channel, &channel, signer, &signer} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%X", "%q", "%d"} {
			text := fmt.Sprintf(verb, key)
			wrapped := fmt.Sprintf(verb, struct{ K any }{key}) + fmt.Sprintf(verb, struct{ key any }{key}) +
				fmt.Sprintf(verb, struct{ key NodePrivate }{node}) + fmt.Sprintf(verb, &struct{ key SignerPrivate }{signer})
			if strings.Contains(strings.ToLower(text+wrapped), "5a5a") || strings.Contains(text+wrapped, "90 90") {
				t.Errorf("%T shows itself under %s: %s %s", key, verb, text, wrapped)
			}
		}
		if _, err := json.Marshal(key); !errors.Is(err, ErrPrivateKey) {
			t.Errorf("%T was marshalled: %v", key, err)
		}
	}
}

func TestLabelKeyStaysSecret(t *testing.T) {
	var key LabelKey
	copy(key[:], "a secret")
	holder := struct{ Label LabelKey }{key}
	for _, v := range []any{key, &key, holder, &holder, []LabelKey{key}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%X", "%q", "%d"} {
			if text := fmt.Sprintf(verb, v); !strings.Contains(text, "[redacted]") {
				t.Errorf("%s of %T prints %s", verb, v, text)
			}
		}
		if _, err := json.Marshal(v); !errors.Is(err, ErrPrivateKey) {
			t.Errorf("JSON of %T: %v", v, err)
		}
	}
}

func TestPrivateKeyBytes(t *testing.T) {
	node, _ := NewNodePrivate(fill(9))
	again, err := NodePrivateFromBytes(node.SecretBytes())
	if err != nil || again.Public() != node.Public() {
		t.Errorf("read back as %v, %v", again.Public(), err)
	}
	for _, bad := range [][]byte{nil, make([]byte, 31), make([]byte, 32), make([]byte, 33)} {
		if _, err := NodePrivateFromBytes(bad); !errors.Is(err, ErrMalformedKey) {
			t.Errorf("%d bytes: %v", len(bad), err)
		}
	}
	if _, err := NewNodePrivate(bytes.NewReader(nil)); err == nil {
		t.Error("a key from no randomness")
	}
}

func TestSharedWith(t *testing.T) {
	a, _ := NewNodePrivate(fill(1))
	b, _ := NewNodePrivate(fill(2))
	ab, err := a.SharedWith(b.Public())
	if err != nil {
		t.Fatal(err)
	}
	if ba, err := b.SharedWith(a.Public()); err != nil || ab != ba {
		t.Errorf("the two sides differ: %v", err)
	}
	if _, err := a.SharedWith(NodeKey{}); !errors.Is(err, ErrMalformedKey) {
		t.Errorf("low-order point: %v", err)
	}
}

func TestSignatures(t *testing.T) {
	signer, _ := NewSignerPrivate(fill(3))
	signature := signer.Sign([]byte("text"))
	public := signer.Public()
	if !public.Verify([]byte("text"), signature[:]) {
		t.Error("own signature refused")
	}
	if public.Verify([]byte("Text"), signature[:]) || public.Verify([]byte("text"), signature[1:]) || (SignerKey{}).Verify([]byte("text"), signature[:]) {
		t.Error("a wrong signature, or one by no key, verified")
	}
	// The second half is S; adding the group order gives the malleable twin
	// that a strict verifier refuses.
	order := []byte{
		0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14,
		0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
	}
	carry := 0
	for i := range order {
		sum := int(signature[32+i]) + int(order[i]) + carry
		signature[32+i], carry = byte(sum), sum>>8
	}
	if public.Verify([]byte("text"), signature[:]) {
		t.Error("a non-canonical signature verified")
	}
}

func TestLabels(t *testing.T) {
	var key LabelKey
	a, b := key.Label("tag:a"), key.Label("tag:b")
	if a == b || a != key.Label("tag:a") || a == (LabelKey{1}).Label("tag:a") {
		t.Error("labels are not a function of key and name")
	}
	s := NewLabelSet(b, a, a)
	if s.Len() != 2 || !s.Has(a) || !s.Has(b) || s.Has(0) {
		t.Errorf("set %v", s.Slice())
	}
	if !s.HasAll(NewLabelSet(a)) || !s.HasAll(LabelSet{}) || NewLabelSet(a).HasAll(s) || (LabelSet{}).HasAll(NewLabelSet(a)) {
		t.Error("HasAll")
	}
	if !s.Equal(NewLabelSet(a, b)) || s.Equal(NewLabelSet(a)) {
		t.Error("Equal")
	}
	// What asks for no label at all is asked of everybody; what asks for the
	// label zero is true of nobody.
	zero := NewLabelSet(0)
	for _, held := range []LabelSet{{}, zero, s, NewLabelSet(0, a)} {
		if held.HasAll(zero) || held.HasAll(NewLabelSet(a, 0)) || held.Has(0) {
			t.Errorf("%v has the label zero", held.Slice())
		}
	}
}

func TestTags(t *testing.T) {
	for tag, want := range map[Tag]bool{
		"tag:db": true, "tag:Db-1": true, "tag:d": true,
		"": false, "db": false, "tag:": false, "tag:1db": false, "tag:-db": false, "tag:d b": false, "tag:dé": false,
		Tag("tag:" + strings.Repeat("a", 63)): true, Tag("tag:" + strings.Repeat("a", 64)): false,
	} {
		if tag.Valid() != want {
			t.Errorf("%q: valid %v", tag, tag.Valid())
		}
	}
}

func TestFingerprint(t *testing.T) {
	f := Fingerprint{1, 2, 3, 255}
	got, err := ParseFingerprint(f.String())
	if err != nil || got != f || len(f.String()) != 52 {
		t.Errorf("%s read back as %v, %v", f, got, err)
	}
	text := f.String()
	// The last letter carries four bits more than there are: sixteen spellings,
	// of which one is canonical.
	for _, bad := range []string{"", text[:51], text + "a", strings.ToUpper(text), text[:51] + "b", "1" + text[1:]} {
		if _, err := ParseFingerprint(bad); !errors.Is(err, ErrMalformedFingerprint) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
