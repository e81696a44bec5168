//! What a store lost of the writes that it acknowledged, when its process was killed with SIGKILL.
//!
//! A child process writes and says so through a pipe; it is killed in the middle. The machine goes on, so
//! that this shows what the end of the process loses, not what a power loss does.

use crate::report::{Line, Report};
use crate::stores::cases::{key, value};
use crate::stores::{Maker, Result};
use crate::{disk, sqlite};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

const VALUE_BYTES: usize = 1024;
/// Puts of a child that nobody kills.
const PUTS_MAX: usize = 1_000_000;

/// Kills one child for each subject.
pub fn run(case: &str, makers: &[Maker], is_quick: bool, folder: &Path, report: &mut Report) -> Result<()> {
    let acknowledged_min = if is_quick { 100 } else { 500 };
    let mut lines = Vec::new();
    for maker in makers {
        let folder = tempfile::tempdir_in(folder)?;
        let acknowledged = write_and_kill(case, maker, folder.path(), acknowledged_min)?;
        let line =
            Line::new(&format!("{case} kill -9"), maker.name).value("acknowledged", acknowledged as f64);
        lines.push(match lost(maker, folder.path(), acknowledged) {
            Ok((lost, wrong)) => {
                let line = line.value("lost", lost as f64).value("wrong", wrong as f64);
                if lost + wrong > 0 { line.flag("not all that was acknowledged is there") } else { line }
            }
            Err(error) => line.flag(format!("does not open again: {error}")),
        });
    }
    report.group(&lines, "lost");
    Ok(())
}

/// Writes until it is killed, and prints a line for each put that returned.
pub fn child(case: &str, subject: &str, folder: &Path) -> Result<()> {
    let makers = if case == "sqlite" { sqlite::makers() } else { disk::makers() };
    let maker = makers.iter().find(|maker| maker.name == subject).ok_or("unknown subject")?;
    let store = (maker.open)(folder)?;
    let mut acknowledge = std::io::stdout().lock();
    for number in 0..PUTS_MAX {
        store.put(&key(number), &value(VALUE_BYTES, number as u64))?;
        writeln!(acknowledge, "{number}")?;
        acknowledge.flush()?;
    }
    Ok(())
}

/// How many puts were acknowledged.
fn write_and_kill(case: &str, maker: &Maker, folder: &Path, acknowledged_min: usize) -> Result<usize> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["kill-of", case, maker.name])
        .arg(folder)
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().ok_or("the child has no pipe")?).lines();
    let mut acknowledged = 0;
    while acknowledged < acknowledged_min && lines.next().transpose()?.is_some() {
        acknowledged += 1;
    }
    child.kill()?;
    // What is in the pipe was acknowledged, too.
    acknowledged += lines.map_while(std::result::Result::ok).count();
    child.wait()?;
    if acknowledged < acknowledged_min {
        return Err(format!("{}: the child ended after {acknowledged} puts", maker.name).into());
    }
    Ok(acknowledged)
}

fn lost(maker: &Maker, folder: &Path, acknowledged: usize) -> Result<(usize, usize)> {
    let store = (maker.open)(folder)?;
    let (mut lost, mut wrong) = (0, 0);
    for number in 0..acknowledged {
        let mut is_right = false;
        let found = store.get(&key(number), &mut |found| {
            is_right = found == value(VALUE_BYTES, number as u64);
        })?;
        lost += usize::from(!found);
        wrong += usize::from(found && !is_right);
    }
    store.close()?;
    Ok((lost, wrong))
}
