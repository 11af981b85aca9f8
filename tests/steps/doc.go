// Command steps carries out the steps of the Makefile that need more than a
// line of shell. It uses the standard library only, so that it runs before
// anything else is installed.
//
//	steps install                    Debian packages that the other steps use
//	steps test NAME ARG...           go test ARG..., reported briefly, with what tests measured, and counts
//	steps replay PACKAGE...          the committed fuzz corpora
//	steps fuzz DURATION PACKAGE...   every fuzz target in turn
//	steps generate                   delete generated code, regenerate, compare
//	steps deps GOVULNCHECK           go.mod, checksums, licences, vulnerabilities
//	steps policy-cases WARREN CHECK  the captured policies, where they are
//	steps man PROGRAM DIR            a program's manual page and completions
//
// A step exits with 0 when it did what it says, 1 when something failed, and 2
// for wrong usage. Each ends with one line of counts.
//
// A test that measured something for people says it line by line with
// t.Attr("report", line); what passing tests print otherwise is not shown.
package main
