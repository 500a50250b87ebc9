//! Running the real haproxy in our place.

use std::{
    env,
    ffi::OsString,
    fs,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::Path,
    process::Command,
};

use nix::sys::signal::SigSet;

use crate::report::Failure;

/// Becomes the program, with the arguments we were called with; comes back only if it cannot.
pub(crate) fn execute(program: &Path, arguments: &[OsString]) -> Failure {
    if is_ourselves(program) {
        return Failure::new(format_args!(
            "fallback {} is this program itself; name the real haproxy",
            program.display()
        ));
    }
    // What is blocked here would stay blocked there, and SIGTERM must end it.
    let _ = SigSet::empty().thread_set_mask();
    let name = env::args_os().next().unwrap_or_else(|| program.into());
    let error = Command::new(program).arg0(name).args(arguments).exec();
    Failure::new(format_args!("cannot run {}: {error}", program.display()))
}

/// Whether a path leads back here, where it would be tried again without end.
fn is_ourselves(program: &Path) -> bool {
    let file = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
    let own = file(Path::new("/proc/self/exe"));
    own.is_some() && own == file(program)
}
