//! `kubevirt-cloud-controller-manager`: reads the command line and runs the program.

use std::process::ExitCode;

use ccm::flags::{Flags, with_dashes};
use clap::Parser;

fn main() -> ExitCode {
    let flags = Flags::parse_from(with_dashes(std::env::args_os()));
    match ccm::program::start(flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Logging may not be set up: the reason of a failed start must be readable in any case.
            eprintln!("kubevirt-cloud-controller-manager: {error:#}");
            ExitCode::FAILURE
        }
    }
}
