//! The servers of GlusterFS: a volume of two bricks. Each object is on one of them.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use test_common::{Detail, Setup, put};

use crate::Servers;
use crate::mount::eventually;
use crate::network::HOST;
use crate::run;

pub struct GlusterFs {
    root: PathBuf,
    server: Child,
}

impl Servers for GlusterFs {
    const LOWER: Detail = Detail::Everything;

    fn start(setup: &Setup) -> Self {
        for name in ["bricks", "state"] {
            setup.dir(name);
        }
        let root = setup.root();
        let shown = root.display();
        let config = format!(
            "volume management\n type mgmt/glusterd\n option working-directory {shown}/state\n \
             option glusterd-sockfile {shown}/socket\n option transport-type socket\n \
             option transport.address-family inet\nend-volume\n"
        );
        let config = put::file(root, "glusterd.vol", config);
        let mut server = Command::new("glusterd");
        server.arg("-N").arg("-f").arg(config).arg("-p").arg(setup.path("pid")).arg("-l").arg(setup.path("log"));
        let server = server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let servers =
            Self { root: root.to_owned(), server: server.expect("glusterd: install the package glusterfs-server") };
        eventually("the server answers", || servers.try_to(&["volume", "list"]));
        let bricks = ["1", "2"].map(|brick| format!("{HOST}:{shown}/bricks/{brick}"));
        assert!(servers.try_to(&["volume", "create", "layers", &bricks[0], &bricks[1], "force"]), "no volume");
        assert!(servers.try_to(&["volume", "start", "layers"]), "the volume does not start");
        servers
    }

    fn mount(&self, point: &Path) {
        let mut command = run::command("mount");
        command.args(["-t", "glusterfs", "-o"]).arg(format!("log-file={}.log", point.display()));
        let done = run::finish(command.arg(format!("{HOST}:/layers")).arg(point));
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
}

impl GlusterFs {
    /// Whether a command to the server succeeds.
    fn try_to(&self, words: &[&str]) -> bool {
        let mut command = run::command("gluster");
        command.arg("--mode=script").arg(format!("--glusterd-sock={}", self.root.join("socket").display()));
        run::finish(command.args(words)).status.success()
    }

    /// Ends the process of one brick, as the failure of its host would.
    pub fn fail_brick(&mut self) {
        let brick = format!("glusterfsd.*{}/bricks/1", self.root.display());
        assert!(Command::new("pkill").args(["-KILL", "-f", &brick]).status().unwrap().success(), "no brick to end");
    }

    pub fn start_brick(&mut self) {
        assert!(self.try_to(&["volume", "start", "layers", "force"]), "the brick does not start again");
    }
}

impl Drop for GlusterFs {
    fn drop(&mut self) {
        self.try_to(&["volume", "stop", "layers", "force"]);
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
