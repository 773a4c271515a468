//! `kubevirt-cloud-controller-manager`: reads the command line and runs the program.

use std::process::ExitCode;

use ccm::flags::Flags;
use clap::Parser;
use serving::go_flags::with_dashes;

fn main() -> ExitCode {
    let flags = Flags::parse_from(with_dashes(std::env::args_os()));
    serving::program::exit_code("kubevirt-cloud-controller-manager", ccm::program::start(flags))
}
