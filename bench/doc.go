// Package bench measures partnerauth beside what a team would otherwise use:
// the same request, through the same Base, in one run.
package bench
