package relayserver

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// files is a certificate and its key on disk.
type files struct {
	t         *testing.T
	cert, key string
	changed   time.Time
}

// renew writes a certificate with a serial, and a key that is its own.
func (f *files) renew(serial int64) {
	f.t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		f.t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		f.t.Fatal(err)
	}
	f.write(f.key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
	f.write(f.cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// write writes a file that is newer than all before.
func (f *files) write(name string, text []byte) {
	f.t.Helper()
	if err := os.WriteFile(name, text, 0o600); err != nil {
		f.t.Fatal(err)
	}
	f.changed = f.changed.Add(time.Second)
	if err := os.Chtimes(name, f.changed, f.changed); err != nil {
		f.t.Fatal(err)
	}
}

// TestRenewedCertificate: a certificate that was renewed is served within a
// minute; a file that cannot be read, or a key that is not the certificate's, is
// told once a minute, and the one before goes on.
func TestRenewedCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		f := &files{t: t, cert: filepath.Join(dir, "cert.pem"), key: filepath.Join(dir, "key.pem"), changed: time.Now()}
		var log bytes.Buffer
		logger := slog.New(slog.NewTextHandler(&log, nil))
		if _, err := NewCertificate(f.cert, f.key, logger); err == nil || !strings.Contains(err.Error(), "cert.pem") {
			t.Errorf("without files: %v", err)
		}
		f.renew(1)
		certificate, err := NewCertificate(f.cert, f.key, logger)
		if err != nil {
			t.Fatal(err)
		}
		settings := certificate.TLS()
		serves := func(when string, serial int64) {
			t.Helper()
			c, err := settings.GetCertificate(&tls.ClientHelloInfo{})
			if err != nil {
				t.Fatal(err)
			}
			parsed, err := x509.ParseCertificate(c.Certificate[0])
			if err != nil {
				t.Fatal(err)
			}
			if parsed.SerialNumber.Int64() != serial {
				t.Errorf("%s it serves certificate %v, not %d", when, parsed.SerialNumber, serial)
			}
		}
		serves("at first", 1)
		f.renew(2)
		time.Sleep(certificateCheck - time.Second)
		serves("59 s after its renewal", 1)
		time.Sleep(time.Second)
		serves("a minute after its renewal", 2)

		good, err := os.ReadFile(f.key)
		if err != nil {
			t.Fatal(err)
		}
		f.renew(3)
		f.write(f.key, good) // of certificate 2
		time.Sleep(certificateCheck)
		serves("with another one's key", 2)
		f.write(f.cert, []byte("half a fi"))
		for range 10 {
			time.Sleep(certificateCheck / 10)
			serves("with half a file", 2)
		}
		if n := strings.Count(log.String(), "the renewed certificate cannot be used"); n != 2 {
			t.Errorf("it was told %d times in two minutes:\n%s", n, log.String())
		}
		if err := os.Remove(f.cert); err != nil {
			t.Fatal(err)
		}
		time.Sleep(certificateCheck)
		serves("without a file", 2)
		f.renew(4)
		time.Sleep(certificateCheck)
		serves("in order again", 4)

		// By Reload, at once, and from other files.
		f.renew(5)
		serves("renewed", 4)
		if err := certificate.Reload(f.cert, f.key); err != nil {
			t.Error(err)
		}
		serves("read at once", 5)
		f.renew(6)
		f.write(f.key, good)
		for name, cert := range map[string]string{"with another one's key": f.cert, "without a file": f.cert + "x"} {
			if err := certificate.Reload(cert, f.key); err == nil {
				t.Errorf("%s it is read", name)
			}
			serves(name+", read at once", 5)
		}
		f.cert, f.key = filepath.Join(dir, "other.pem"), filepath.Join(dir, "other.key")
		f.renew(7)
		if err := certificate.Reload(f.cert, f.key); err != nil {
			t.Error(err)
		}
		serves("of other files", 7)
		f.renew(8)
		time.Sleep(certificateCheck)
		serves("a minute after the other files were renewed", 8)
		if end := certificate.NotAfter(); !end.Equal(time.Now().Add(time.Hour - certificateCheck).Truncate(time.Second)) {
			t.Errorf("it ends at %v", end)
		}
	})
}
