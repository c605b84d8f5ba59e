// Pins critest, which comes as a Go module only: `build` makes it from here.
module nacre.test/critest

go 1.24.1

tool sigs.k8s.io/cri-tools/cmd/critest

require sigs.k8s.io/cri-tools v1.34.0 // indirect
