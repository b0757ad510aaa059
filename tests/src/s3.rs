//! An S3-compatible server of a test's own: a process, as a bucket elsewhere would be.

use std::{
    fs,
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::{free_port, wait_for};

pub const ACCESS_KEY: &str = "treering-test";
pub const SECRET_KEY: &str = "treering-test-secret";
pub const BUCKET: &str = "treering";

/// The server, running or not.
pub struct S3 {
    program: String,
    dir: tempfile::TempDir,
    port: u16,
    process: Option<Child>,
}

impl S3 {
    /// A server with one empty bucket. `program`: `s3_server`, built with the tests.
    pub fn start(program: &str) -> S3 {
        let dir = tempfile::Builder::new().prefix("treering-s3-").tempdir().expect("directory");
        fs::create_dir(dir.path().join(BUCKET)).expect("bucket");
        let mut server = S3 { program: program.to_owned(), dir, port: free_port(), process: None };
        server.resume();
        server
    }

    /// Starts it again, at the same address and with what it held.
    pub fn resume(&mut self) {
        let address = format!("127.0.0.1:{}", self.port);
        let server = Command::new(&self.program)
            .arg(&address)
            .arg(self.dir.path())
            .stdin(Stdio::null())
            .spawn();
        self.process = Some(server.expect("start s3_server"));
        wait_for("the S3 server", Duration::from_secs(30), || TcpStream::connect(&address).ok());
    }

    /// Ends it in the middle of whatever it does.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// What a client finds in its environment.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", self.port)),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
        ]
    }

    /// Objects in the bucket: how many, and their bytes.
    pub fn contents(&self) -> (usize, u64) {
        below(&self.dir.path().join(BUCKET))
    }
}

fn below(directory: &Path) -> (usize, u64) {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => below(&entry.path()),
        Ok(meta) => (1, meta.len()),
        Err(_) => (0, 0),
    });
    sizes.fold((0, 0), |(count, bytes), (c, b)| (count + c, bytes + b))
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.kill();
    }
}
