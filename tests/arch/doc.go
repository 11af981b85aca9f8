// Package arch keeps the shape of the tree: what may import what, what stays
// pure, what is documented, how large a file may be, which modules the programs
// are made of and under which licences. Each rule is a test, so that a review
// can be about the change and not about the rule.
//
// The rules that need a decision are tables: packages_test.go says what every
// package is and what it may import of the module, modules_test.go names every
// third-party module with the reason for it and the packages that may import
// it. A package or module that is not in its table fails, and so does an entry
// of a table that nothing in the tree answers to. testdata/sleeps.txt and
// testdata/modules hold what is counted or generated.
//
// To add a package, add its line to the table in packages_test.go. To add a
// dependency, add its line to the table in modules_test.go and run `make
// generate`; both lines are part of the review.
package arch
