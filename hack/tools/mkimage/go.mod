module berth/hack/tools/mkimage

go 1.26.8
