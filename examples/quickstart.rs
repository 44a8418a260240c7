//! SHA-256 and line counts of all files in a directory, computed in a pool of processes.
//!
//! ```text
//! cargo run --release --example quickstart -- [DIR] [--workers N]
//! ```
//!
//! Without DIR it takes the Rust toolchain's own documentation or library. The total digest does not depend on the
//! number of workers, and coreutils give the same:
//!
//! ```text
//! find DIR -type f -print0 | LC_ALL=C sort -z | xargs -0r sha256sum | sha256sum
//! ```
//!
//! A file that can't be read is named on stderr and is no part of the digest, as with `sha256sum`; the exit code is 1
//! then. Symbolic links are not followed, and what is neither file nor directory is not opened.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};
use multiproc::{Command, ProcessPool};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// What a worker found out about a file.
#[derive(Serialize, Deserialize)]
struct Report {
    sha256: String,
    bytes: u64,
    lines: u64,
    took: Duration,
    pid: u32,
}

/// Runs in a worker. A path is sent as an `OsString`: serde refuses a `Path` that is not UTF-8.
fn inspect(path: OsString) -> Result<Report, String> {
    let begun = Instant::now();
    let (mut hasher, mut bytes, mut lines) = (Sha256::new(), 0, 0);
    let mut read = || {
        let mut file = File::open(&path)?;
        let mut buffer = vec![0; 256 << 10];
        loop {
            let part = match file.read(&mut buffer)? {
                0 => return Ok(()),
                len => &buffer[..len],
            };
            hasher.update(part);
            bytes += part.len() as u64;
            lines += part.iter().map(|&byte| u64::from(byte == b'\n')).sum::<u64>();
        }
    };
    read().map_err(|error: io::Error| error.to_string())?;
    Ok(Report { sha256: hex(hasher), bytes, lines, took: begun.elapsed(), pid: std::process::id() })
}

fn hex(hasher: Sha256) -> String {
    format!("{:x}", Bytes::from_owner(hasher.finalize()))
}

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    multiproc::init();
    let (root, workers) = arguments().await?;
    let pool = match workers {
        Some(workers) => ProcessPool::builder().workers(workers).build()?,
        None => ProcessPool::default(),
    };

    let begun = Instant::now();
    let tree = Tree::walk(&root);
    let bar = ProgressBar::new(tree.bytes)
        .with_style(ProgressStyle::with_template("{bar:40} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} to go")?);

    // In the order of the paths, whichever worker is done first; a large file holds up only those far behind it.
    let inputs = tree.files.iter().map(|path| path.clone().into_os_string());
    let mut reports = pool.map(inputs, inspect).read_ahead(1000);
    let mut summary = Summary::default();
    let mut unread = tree.unread;
    for path in &tree.files {
        let report = reports.next().await.expect("each input has its result");
        // A file may be unreadable, and a worker may die over it. Both cost this file and no other.
        match report.map_err(|error| error.to_string()).flatten() {
            Ok(report) => {
                bar.inc(report.bytes);
                summary.add(path, &report);
            }
            Err(error) => unread.push(format!("{}: {error}", path.display())),
        }
    }
    bar.finish_and_clear();
    pool.close().await;

    for problem in &unread {
        eprintln!("{problem}");
    }
    summary.print(begun.elapsed());
    println!("left out   {} links, {} special, {} unreadable", tree.links, tree.special, unread.len());
    let quoted = root.display().to_string().replace('\'', r"'\''");
    println!("the same   find '{quoted}' -type f -print0 | LC_ALL=C sort -z | xargs -0r sha256sum | sha256sum");
    Ok(if unread.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What all reports come to. They must be added in the order of their paths.
#[derive(Default)]
struct Summary {
    total: Sha256,
    files: u64,
    bytes: u64,
    lines: u64,
    slowest: Option<(Duration, PathBuf)>,
    largest: Option<(u64, PathBuf)>,
    /// Files and bytes by worker.
    work: BTreeMap<u32, (u64, u64)>,
}

impl Summary {
    fn add(&mut self, path: &Path, report: &Report) {
        self.total.update(sha256sum_line(&report.sha256, path));
        self.files += 1;
        self.bytes += report.bytes;
        self.lines += report.lines;
        if self.slowest.as_ref().is_none_or(|(took, _)| report.took > *took) {
            self.slowest = Some((report.took, path.to_owned()));
        }
        if self.largest.as_ref().is_none_or(|(bytes, _)| report.bytes > *bytes) {
            self.largest = Some((report.bytes, path.to_owned()));
        }
        let (files, bytes) = self.work.entry(report.pid).or_default();
        *files += 1;
        *bytes += report.bytes;
    }

    fn print(self, elapsed: Duration) {
        let (files, bytes) = (HumanCount(self.files), HumanBytes(self.bytes));
        println!("all        {files} files, {bytes}, {} lines in {elapsed:.2?}", HumanCount(self.lines));
        if let Some((took, path)) = self.slowest {
            println!("slowest    {took:.2?}  {}", path.display());
        }
        if let Some((bytes, path)) = self.largest {
            println!("largest    {}  {}", HumanBytes(bytes), path.display());
        }
        for (pid, (files, bytes)) in self.work {
            println!("pid {pid:<6} {} files, {}", HumanCount(files), HumanBytes(bytes));
        }
        println!("digest     {}", hex(self.total));
    }
}

/// The line that `sha256sum` prints: a name with a backslash or a line break is escaped, and the line says so in front.
fn sha256sum_line(sha256: &str, path: &Path) -> Vec<u8> {
    let name = path.as_os_str().as_bytes();
    let mut escaped = Vec::with_capacity(name.len());
    for &byte in name {
        match byte {
            b'\\' => escaped.extend(br"\\"),
            b'\n' => escaped.extend(br"\n"),
            b'\r' => escaped.extend(br"\r"),
            other => escaped.push(other),
        }
    }
    let mark = if escaped == name { "" } else { "\\" };
    [format!("{mark}{sha256}  ").as_bytes(), &escaped, b"\n"].concat()
}

/// What lies under a directory.
#[derive(Default)]
struct Tree {
    /// Regular files, in the order of their bytes.
    files: Vec<PathBuf>,
    bytes: u64,
    links: usize,
    special: usize,
    /// What could not be looked at, and why.
    unread: Vec<String>,
}

impl Tree {
    fn walk(root: &Path) -> Self {
        let mut tree = Self::default();
        let mut left = vec![root.to_owned()];
        while let Some(path) = left.pop() {
            if let Err(error) = tree.visit(&path, &mut left) {
                tree.unread.push(format!("{}: {error}", path.display()));
            }
        }
        // As bytes: a `Path` is compared part by part, which is another order.
        tree.files.sort_by(|a, b| a.as_os_str().cmp(b.as_os_str()));
        tree
    }

    fn visit(&mut self, path: &Path, left: &mut Vec<PathBuf>) -> io::Result<()> {
        let metadata = fs::symlink_metadata(path)?;
        if metadata.is_dir() {
            for entry in fs::read_dir(path)? {
                left.push(entry?.path());
            }
        } else if metadata.is_file() {
            self.bytes += metadata.len();
            self.files.push(path.to_owned());
        } else if metadata.is_symlink() {
            self.links += 1;
        } else {
            self.special += 1;
        }
        Ok(())
    }
}

/// The directory and the number of workers, from the command line.
async fn arguments() -> Result<(PathBuf, Option<usize>), Box<dyn std::error::Error>> {
    let (mut root, mut workers) = (None, None);
    let mut arguments = std::env::args_os().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--workers" {
            let number = arguments.next().ok_or("--workers needs a number")?;
            workers =
                Some(number.to_string_lossy().parse().map_err(|_| format!("{} is not a number", number.display()))?);
        } else if root.is_none() && !argument.as_bytes().starts_with(b"-") {
            root = Some(PathBuf::from(argument));
        } else {
            return Err(format!("usage: quickstart [DIR] [--workers N], and not {}", argument.display()).into());
        }
    }
    let mut root = match root {
        Some(root) => root,
        None => toolchain().await,
    };
    if root.is_symlink() {
        // With a slash behind it, it is the directory that it points at, for `find` too.
        root.push("");
    }
    Ok((root, workers))
}

/// Where the Rust toolchain has its documentation, or else its library, or else the current directory.
async fn toolchain() -> PathBuf {
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).read().await.unwrap_or_default();
    ["share/doc/rust/html", "lib/rustlib"]
        .map(|part| Path::new(&sysroot).join(part))
        .into_iter()
        .find(|path| path.is_dir())
        .unwrap_or_else(|| PathBuf::from("."))
}
