//! A server of NFS on loopback, `ganesha.nfsd`, and a client of version 4 that keeps file handles
//! over restarts of the server. Programs look paths up anew instead.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::mount::eventually;

/// The status of a handle of an object that is gone (`NFS4ERR_STALE`).
pub const STALE: u32 = 70;

/// Operations of a request.
const GETFH: u32 = 10;
const LOOKUP: u32 = 15;
const PUTFH: u32 = 22;
const PUTROOTFH: u32 = 24;
const READ: u32 = 25;

/// A server that exports a directory as `/export`. The drop ends it.
pub struct Server {
    process: Child,
    port: u16,
}

impl Server {
    /// Starts a server for the mount at `point`, with its files in `dir`.
    pub fn start(point: &Path, dir: &Path) -> Self {
        // Free a moment ago. No other program of the test takes a fixed port.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (point, state, config) = (point.display(), dir.display(), dir.join("config"));
        let text = format!(
            "NFS_CORE_PARAM {{ NFS_Port = {port}; Protocols = 4; Bind_addr = 127.0.0.1; Enable_UDP = false; \
             Enable_NLM = false; Enable_RQUOTA = false; }}\n\
             NFSv4 {{ RecoveryBackend = fs; Graceless = true; RecoveryRoot = {state}; }}\n\
             EXPORT {{ Export_Id = 1; Path = {point}; Pseudo = /export; Access_Type = RW; \
             Squash = No_Root_Squash; SecType = sys; FSAL {{ Name = VFS; fsid_type = None; }} }}\n"
        );
        fs::write(&config, text).unwrap();
        let log = dir.join("log");
        let mut command = Command::new("ganesha.nfsd");
        command.arg("-F").arg("-f").arg(config).arg("-L").arg(&log).arg("-p").arg(dir.join("pid"));
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let process = process.expect("ganesha.nfsd: install the package nfs-ganesha");
        let server = Self { process, port };
        eventually("the server answers", || server.handle("").is_ok());
        server
    }

    /// Returns the handle of a path in the export, or a status.
    pub fn handle(&self, path: &str) -> Result<Vec<u8>, u32> {
        let names: Vec<_> = ["export"].into_iter().chain(path.split('/')).filter(|name| !name.is_empty()).collect();
        let mut calls = vec![words(&[PUTROOTFH])];
        calls.extend(names.iter().map(|name| [words(&[LOOKUP]), opaque(name.as_bytes())].concat()));
        calls.push(words(&[GETFH]));
        let answer = self.call(&calls).map_err(|_| u32::MAX)?;
        Ok(taken(&mut &answer.last_result()?[..]).to_vec())
    }

    /// Returns the content of the file of a handle, or a status.
    pub fn read(&self, handle: &[u8]) -> Result<String, u32> {
        let read = [words(&[READ]), vec![0; 16], vec![0; 8], words(&[1 << 16])].concat();
        let answer = self.call(&[[words(&[PUTFH]), opaque(handle)].concat(), read]).unwrap();
        let result = answer.last_result()?;
        Ok(String::from_utf8(taken(&mut &result[4..]).to_vec()).unwrap())
    }

    /// Returns the address of a path in the export, for the programs of libnfs.
    pub fn address(&self, path: &str) -> String {
        format!("nfs://127.0.0.1/export/{path}?version=4&nfsport={}", self.port)
    }

    fn call(&self, calls: &[Vec<u8>]) -> io::Result<Answer> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        // A call of root: the number of the request, the program and its procedure COMPOUND.
        let mut body = words(&[7, 0, 2, 100_003, 4, 1]);
        body.extend([words(&[1, 20, 0, 0, 0, 0, 0]), words(&[0, 0])].concat());
        body.extend([opaque(b""), words(&[0, calls.len() as u32]), calls.concat()].concat());
        stream.write_all(&words(&[1 << 31 | body.len() as u32]))?;
        stream.write_all(&body)?;
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let mut answer = vec![0; (u32::from_be_bytes(length) & !(1 << 31)) as usize];
        stream.read_exact(&mut answer)?;
        Ok(Answer { body: answer, calls: calls.len() })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A server that ends by itself keeps the mount busy for a while.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An answer to a compound of calls.
struct Answer {
    body: Vec<u8>,
    calls: usize,
}

impl Answer {
    /// Returns the result of the last call, without its status. All calls before it have none.
    fn last_result(&self) -> Result<Vec<u8>, u32> {
        let mut rest = &self.body[..];
        assert_eq!(taken_words::<6>(&mut rest), [7, 1, 0, 0, 0, 0], "the server accepts the call");
        let [status] = taken_words(&mut rest);
        taken(&mut rest);
        if status != 0 {
            return Err(status);
        }
        let [results] = taken_words(&mut rest);
        assert_eq!(results as usize, self.calls);
        for _ in 0..self.calls {
            let [_call, status] = taken_words(&mut rest);
            assert_eq!(status, 0);
        }
        Ok(rest.to_vec())
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

fn opaque(bytes: &[u8]) -> Vec<u8> {
    let mut opaque = words(&[bytes.len() as u32]);
    opaque.extend_from_slice(bytes);
    opaque.resize(opaque.len().next_multiple_of(4), 0);
    opaque
}

fn taken_words<const N: usize>(from: &mut &[u8]) -> [u32; N] {
    let (words, rest) = from.split_at(4 * N);
    *from = rest;
    std::array::from_fn(|index| u32::from_be_bytes(words[4 * index..][..4].try_into().unwrap()))
}

fn taken<'a>(from: &mut &'a [u8]) -> &'a [u8] {
    let [length] = taken_words(from);
    let (bytes, rest) = from.split_at((length as usize).next_multiple_of(4));
    *from = rest;
    &bytes[..length as usize]
}

/// Runs a program of libnfs. Returns its output.
pub fn program(name: &str, arguments: &[&str]) -> Vec<u8> {
    let output = crate::run::finish(crate::run::command(name).args(arguments));
    assert!(output.status.success(), "{name} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}
