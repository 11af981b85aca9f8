package lab

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// trustVariable names the file with the authorities that programs trust, in place of
// the system's, as for users with an authority of their own.
const trustVariable = "SSL_CERT_FILE"

// authority signs the certificates of a lab's servers. Programs on the lab's hosts
// trust it, and each other none of it.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	file        string // PEM
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{file: filepath.Join(t.TempDir(), "authority.pem")}
	der, key := a.sign(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "lab"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	var err error
	if a.certificate, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.key = key
	writePEM(t, a.file, "CERTIFICATE", der)
	return a
}

// sign makes a key and signs the certificate of it, with that key where the
// authority has none yet.
func (a *authority) sign(t testing.TB, template *x509.Certificate) (der []byte, key *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)); err != nil {
		t.Fatal(err)
	}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	parent, signer := a.certificate, a.key
	if parent == nil {
		parent, signer = template, key
	}
	if der, err = x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer); err != nil {
		t.Fatal(err)
	}
	return der, key
}

// pair is a certificate and its private key, PEM files.
type pair struct{ certificate, key string }

// ServerCertificate makes an authority and a certificate of a server at an address,
// without a lab. It returns the PEM files of the certificate and its private key, which
// are removed when the test ends, and the settings of a client that trusts them.
func ServerCertificate(t testing.TB, at netip.Addr) (certificate, key string, client *tls.Config) {
	t.Helper()
	a := newAuthority(t)
	p := a.issue(t, "server", "", at)
	return p.certificate, p.key, a.client()
}

// issue makes a certificate of a server, for its domain, if it has one, and addresses.
func (a *authority) issue(t testing.TB, name, domain string, addresses ...netip.Addr) pair {
	t.Helper()
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if domain != "" {
		template.DNSNames = []string{domain}
	}
	for _, at := range addresses {
		template.IPAddresses = append(template.IPAddresses, net.IP(at.AsSlice()))
	}
	der, key := a.sign(t, template)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	p := pair{filepath.Join(dir, "certificate.pem"), filepath.Join(dir, "key.pem")}
	writePEM(t, p.certificate, "CERTIFICATE", der)
	writePEM(t, p.key, "PRIVATE KEY", private)
	return p
}

func writePEM(t testing.TB, file, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// server returns the settings of a server with the certificate.
func (p pair) server(t testing.TB) *tls.Config {
	t.Helper()
	c, err := tls.LoadX509KeyPair(p.certificate, p.key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{c}}
}

// client returns the settings of one who trusts the authority.
func (a *authority) client() *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(a.certificate)
	return &tls.Config{RootCAs: roots}
}
