//! `bench`: see `bench --help`.

use std::process::ExitCode;

use bench::{command::Bench, sandbox};
use clap::Parser;

fn main() -> ExitCode {
    if let Some(code) = sandbox::init_if_asked() {
        return code;
    }
    match Bench::parse().execute() {
        Ok(code) => code.into(),
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
