//! `kubevirt-cloud-controller-manager`.

fn main() {}
