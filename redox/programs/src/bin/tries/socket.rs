//! A socket in a directory: a server and a client talk through it.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};

use crate::Answer;

pub fn talk(dir: &str) -> Answer {
    let path = format!("{dir}/socket");
    let listener = UnixListener::bind(&path).map_err(|error| format!("bind: {error}"))?;
    let server = std::thread::spawn(move || -> std::io::Result<String> {
        let mut asked = [0; 5];
        let mut stream = listener.accept()?.0;
        stream.read_exact(&mut asked)?;
        stream.write_all(b"world")?;
        Ok(String::from_utf8_lossy(&asked).into_owned())
    });
    let mut stream = UnixStream::connect(&path).map_err(|error| format!("connect: {error}"))?;
    stream.write_all(b"hello")?;
    let mut told = [0; 5];
    stream.read_exact(&mut told)?;
    let asked = server.join().map_err(|_| "the server panicked")??;
    let is_socket = fs::symlink_metadata(&path)?.file_type().is_socket();
    fs::remove_file(&path)?;
    Ok(format!("{asked} {}, a socket: {is_socket}", String::from_utf8_lossy(&told)))
}
