// Package cli drives the built programs as a person would: by scripts
// (testdata/*.txtar, in the language of rogpeppe/go-internal/testscript) that
// run commands and compare what they print and how they end.
//
// Everything happens on loopback addresses with ports that the system chooses,
// in userspace mode, without root. Beside testscript's own commands there are:
//
//	status NUMBER PROGRAM [ARG...]
//	                            run a program that ends with that exit status
//	coordinator [ARG...]        start one with its data in $WORK/c; sets $URL
//	daemon NAME [ARG...]        start a node with its state in $WORK/NAME and its
//	                            socket at $WORK/NAME.sock, and wait until ready
//	end NAME                    end a node with SIGTERM, or the coordinator (c)
//	crash NAME                  the same with SIGKILL
//	eventually REGEXP PROGRAM [ARG...]
//	                            run the program until it succeeds and its
//	                            output matches
//	save VARIABLE REGEXP        set a variable to what the regexp's group matches
//	                            in the last standard output
//	listen VARIABLE             serve an echo service on a loopback port
//	listeners NAME NUMBER       expect a node to have so many TCP listeners
//	freeport VARIABLE           find a free TCP port
//	fetch PROXY HOST:PORT       send a line through a SOCKS5 proxy to an echo
//	                            service, and expect it back
package cli
