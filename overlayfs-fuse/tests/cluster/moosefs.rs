//! The servers of MooseFS: a master, which has all names, and two chunkservers. Each has all data.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use test_common::{Detail, Setup, put};

use crate::Servers;
use crate::mount::eventually;
use crate::network::HOST;
use crate::run;

pub struct MooseFs {
    root: PathBuf,
    master: Child,
    chunkservers: [Child; 2],
}

impl Servers for MooseFs {
    /// The client does not know that a reader wants to leave the time of access as it is.
    const LOWER: Detail = Detail::Inodes;

    fn start(setup: &Setup) -> Self {
        let root = setup.root();
        let shown = root.display();
        put::file(root, "master/metadata.mfs", "MFSM NEW");
        let exports = put::file(root, "exports.cfg", "* / rw,alldirs,maproot=0:0\n");
        let topology = put::file(root, "topology.cfg", "");
        // An answered change is on the disk.
        let config = format!(
            "WORKING_USER = root\nWORKING_GROUP = root\nDATA_PATH = {shown}/master\nNICE_LEVEL = 0\n\
             EXPORTS_FILENAME = {}\nTOPOLOGY_FILENAME = {}\nCHANGELOG_SAVE_MODE = 2\n\
             MATOML_LISTEN_HOST = {HOST}\nMATOCS_LISTEN_HOST = {HOST}\nMATOCL_LISTEN_HOST = {HOST}\n",
            exports.display(),
            topology.display(),
        );
        put::file(root, "master.cfg", config);
        for (name, port) in ["chunks1", "chunks2"].into_iter().zip(9422..) {
            let (state, disk) = (setup.dir(name), setup.dir(&format!("{name}-disk")));
            let disks = put::file(root, &format!("{name}.disks"), format!("{}\n", disk.display()));
            let config = format!(
                "WORKING_USER = root\nWORKING_GROUP = root\nDATA_PATH = {}\nNICE_LEVEL = 0\nMASTER_HOST = {HOST}\n\
                 MASTER_RECONNECTION_DELAY = 1\nCSSERV_LISTEN_HOST = {HOST}\nCSSERV_LISTEN_PORT = {port}\n\
                 HDD_CONF_FILENAME = {}\nHDD_LEAVE_SPACE_DEFAULT = 1MiB\n",
                state.display(),
                disks.display(),
            );
            put::file(root, &format!("{name}.cfg"), config);
        }
        let master = start(root, "mfsmaster", "master");
        let chunkservers = ["chunks1", "chunks2"].map(|name| start(root, "mfschunkserver", name));
        Self { root: root.to_owned(), master, chunkservers }
    }

    /// Its client asks a master that is away for a second, then it answers EIO. By itself it asks
    /// for minutes.
    fn mount(&self, point: &Path) {
        eventually("the master answers", || {
            let mut command = run::command("mfsmount");
            run::finish(command.args(["-H", HOST, "-o", "mfsioretries=3"]).arg(point)).status.success()
        });
        eventually("the chunkservers offer space", || rustix::fs::statvfs(point).is_ok_and(|stat| stat.f_bavail > 0));
    }
}

/// Starts a server that has the configuration `name`.cfg.
fn start(root: &Path, program: &str, name: &str) -> Child {
    let log = File::options().create(true).append(true).open(root.join(format!("{name}.log"))).unwrap();
    let mut command = Command::new(program);
    command.arg("-c").arg(root.join(format!("{name}.cfg"))).arg("-f");
    if program == "mfsmaster" {
        // It takes what an ended one has left.
        command.arg("-a");
    }
    command.arg("start").stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command.spawn().unwrap_or_else(|error| panic!("{program}: install the packages of MooseFS: {error}"))
}

fn end(server: &mut Child) {
    server.kill().unwrap();
    server.wait().unwrap();
}

impl MooseFs {
    /// Ends the master, as the failure of its host would.
    pub fn fail_master(&mut self) {
        end(&mut self.master);
    }

    pub fn start_master(&mut self) {
        self.master = start(&self.root, "mfsmaster", "master");
    }

    /// Ends a chunkserver, as the failure of its host would.
    pub fn fail_chunkserver(&mut self) {
        end(&mut self.chunkservers[0]);
    }

    pub fn start_chunkserver(&mut self) {
        self.chunkservers[0] = start(&self.root, "mfschunkserver", "chunks1");
    }
}

impl Drop for MooseFs {
    fn drop(&mut self) {
        for server in self.chunkservers.iter_mut().chain([&mut self.master]) {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}
