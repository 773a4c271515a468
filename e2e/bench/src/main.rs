//! `bench`: see `bench --help`.

use std::process::ExitCode;

use bench::{command::Bench, paths, sandbox};
use clap::Parser;

fn main() -> ExitCode {
    if let Some(code) = sandbox::init_if_asked() {
        return code;
    }
    match paths::program().and_then(|_| Bench::parse().execute()) {
        Ok(code) => code.into(),
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
