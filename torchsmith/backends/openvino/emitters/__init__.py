"""One file per op file of `torchsmith/ops`, one function per op."""
