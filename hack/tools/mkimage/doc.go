// Command mkimage makes a small image of a static busybox and pushes it to a
// registry over plain HTTP:
//
//	mkimage [-busybox FILE] HOST:PORT/NAME:TAG
//
// The image has every applet as a link in /bin, a user "nobody", a page in /www,
// and serves that page on port 80 when it is given no other command. The same
// busybox gives the same digests.
//
//	mkimage -program FILE HOST:PORT/NAME:TAG
//
// makes an image of one static program, which it executes.
package main
