//! `kubevirt-cloud-controller-manager`: reads the command line and runs the program.

use std::process::ExitCode;

use ccm::flags::{Flags, with_dashes};
use clap::Parser;

fn main() -> ExitCode {
    let flags = Flags::parse_from(with_dashes(std::env::args_os()));
    serving::program::exit_code("kubevirt-cloud-controller-manager", ccm::program::start(flags))
}
