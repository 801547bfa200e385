//! sandbox NAME PROGRAM [ARGUMENT...]: runs a program with the scheme NAME as its `/`.

use std::os::unix::process::CommandExt;
use std::process::Command;

use ioslice::IoSlice;
use libredox::{Fd, call, flag};

/// The other schemes that the program may reach. The namespace also has the scheme itself: paths
/// that the system prints begin with that name.
const OTHERS: [&str; 10] = ["debug", "event", "log", "memory", "null", "pipe", "pty", "rand", "time", "zero"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(name), Some(program)) = (arguments.next(), arguments.next()) else {
        return Err("Usage: sandbox NAME PROGRAM [ARGUMENT...]".into());
    };
    let top = Fd::open(&format!("/scheme/{name}"), flag::O_DIRECTORY, 0)?;
    let schemes: Vec<IoSlice> =
        OTHERS.iter().chain([&name.as_str()]).map(|name| IoSlice::new(name.as_bytes())).collect();
    let namespace = call::mkns(&schemes)?;
    call::register_scheme_to_ns(namespace, "file", top.into_raw())?;
    call::setns(namespace)?;
    std::env::set_current_dir("/")?;
    Err(Command::new(program).args(arguments).exec().into())
}
