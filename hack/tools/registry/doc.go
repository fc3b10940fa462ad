// Command registry is the CNCF distribution registry with the filesystem and
// memory drivers only: the cloud drivers of the stock command take minutes to
// build, and no test stores in a cloud.
package main
