// Package compile turns a policy document and the directory of users and
// devices into what each device needs: the labels of its certificate, its rule
// set, and the devices that it may see. DESIGN.md tells how the language is
// understood and how a change is kept cheap.
//
// The package is pure. A Policy is changed in place by its Set and Remove
// methods and is not safe for concurrent use; the rule sets, label sets and
// slices that it hands out are never written to afterwards.
package compile
