//! An upstream that answers by itself, from a file, as nova's metadata API would.
//!
//! For nodes without nova behind them: laboratories, appliances, tests. Who asks is decided by the
//! proved identity and the guest's address alone; nothing in a request but its path, its method,
//! the body of a posted password and (for the form of an error page) `Accept` is looked at. It
//! never waits: everything is rendered when the file is read, and a broken file leaves what was
//! there.
//!
//! The pages have the bytes nova 34 gives them. Where nova fails with a status of 500 because of
//! what its own code does (a path below a leaf, a password that is not UTF-8), the answer here is
//! 404 or 400. An answer to HEAD has the headers of the answer to GET, also where nova's has a
//! length of zero. `network_data.json` is there only if it is declared: an empty one, which nova
//! has for an instance without ports, makes cloud-init configure no network at all.

mod declaration;
mod device;
mod document;
mod ec2;
mod fields;
mod json;
mod openstack;
mod page;
mod password;
mod path;
mod problem;
mod source;
mod tenants;
#[cfg(test)]
mod tests;
mod user_data;
mod watch;

use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use http::{Method, StatusCode};
use uuid::Uuid;

pub use self::problem::{EmbeddedError, Place, Problem};
use self::{
    document::Node,
    fields::Report,
    page::{Page, Seeds},
    password::{Owner, Passwords, Refused},
    path::Segments,
    source::Sources,
};
use super::Answer;
use crate::{
    identity::{GuestAddress, Tenant},
    rewrite::Outgoing,
};

/// Answers from a file.
pub struct Embedded {
    path: PathBuf,
    served: ArcSwap<Served>,
    passwords: Passwords,
    seeds: Seeds,
    /// What was read last, whether or not it can be served; held while reading.
    last_read: Mutex<Sources>,
    /// What is wrong with it, if anything is.
    last_error: ArcSwapOption<String>,
}

/// Everything that is served: one generation of the file.
#[derive(Default)]
struct Served {
    by_address: HashMap<(Tenant, GuestAddress), Arc<Instance>>,
    owners: BTreeSet<Owner>,
    tenants: usize,
}

struct Instance {
    uuid: Uuid,
    openstack: openstack::Tree,
    ec2: ec2::Tree,
}

/// What became of a look at the file.
enum Looked {
    /// It says what it said.
    Unchanged,
    /// It says something else.
    Changed(Result<(), EmbeddedError>),
}

impl Embedded {
    /// Reads the file at `path`: TOML if it ends in `.toml`, YAML otherwise.
    ///
    /// # Errors
    /// [`EmbeddedError`] if it cannot be read, or with all that is wrong with it.
    pub fn open(path: &Path) -> Result<Self, EmbeddedError> {
        let mut sources = Sources::default();
        let served = load(path, &mut sources)?;
        Ok(Self {
            path: path.to_owned(),
            served: ArcSwap::from_pointee(served),
            passwords: Passwords::default(),
            seeds: Seeds::open()?,
            last_read: Mutex::new(sources),
            last_error: ArcSwapOption::empty(),
        })
    }

    /// Answers a request; never waits.
    #[must_use]
    pub fn answer(&self, request: &Outgoing) -> Answer {
        let tenant = request.identity.tenant();
        let served = self.served.load();
        let Some(instance) = served.by_address.get(&(tenant, request.guest)) else {
            return page::missing(request);
        };
        let Some(path) = path::decoded(&request.target) else {
            return page::missing(request);
        };
        let Some(segments) = Segments::of(&path) else {
            return page::missing(request);
        };
        match instance.page(segments.as_slice(), request.guest) {
            Page::Text(body) => page::text(request, body),
            Page::Json(body) => page::json(request, body),
            Page::MetaData(parts) => match self.seeds.complete(&parts) {
                Ok(body) => page::json(request, body),
                Err(error) => {
                    tracing::error!(%error, "cannot read a random seed for meta_data.json");
                    page::error(
                        request,
                        StatusCode::INTERNAL_SERVER_ERROR,
                        "No random seed.",
                    )
                }
            },
            Page::Password => self.password(request, (tenant, instance.uuid)),
            Page::Missing => page::missing(request),
        }
    }

    fn password(&self, request: &Outgoing, owner: Owner) -> Answer {
        let refuse = |status, said| page::error(request, status, said);
        match request.method {
            Method::GET => page::untyped(request, self.passwords.read(&owner)),
            Method::POST => match self.passwords.post(owner, &request.body) {
                Ok(()) => page::untyped(request, Bytes::new()),
                Err(Refused::Posted) => refuse(
                    StatusCode::CONFLICT,
                    "There was a conflict when trying to complete your request.",
                ),
                Err(Refused::TooLong) => refuse(StatusCode::BAD_REQUEST, "Request is too large."),
                Err(Refused::NotText) => refuse(StatusCode::BAD_REQUEST, "Request is not UTF-8."),
            },
            _ => refuse(StatusCode::BAD_REQUEST, "GET and POST only are supported."),
        }
    }

    /// Reads the file again, and serves what it says now; says whether that is something else.
    ///
    /// Reads files, so it may block for as long as the disk does. Passwords of instances that are
    /// still declared stay.
    ///
    /// # Errors
    /// [`EmbeddedError`] if the file cannot be served; what was served before is served on.
    pub fn reload(&self) -> Result<bool, EmbeddedError> {
        let mut last_read = self.lock();
        let was_good = self.last_error.load().is_none();
        let mut sources = Sources::default();
        let loaded = load(&self.path, &mut sources);
        let is_same = was_good && sources.equal(&last_read);
        *last_read = sources;
        match loaded {
            Ok(_) if is_same => Ok(false),
            Ok(served) => {
                self.serve(served);
                Ok(true)
            }
            Err(error) => {
                self.last_error.store(Some(Arc::new(error.to_string())));
                Err(error)
            }
        }
    }

    /// Reads the file again if it, or a file it names, has changed since it was last read.
    fn look(&self) -> Looked {
        if self.lock().are_unchanged() {
            return Looked::Unchanged;
        }
        match self.reload() {
            Ok(false) => Looked::Unchanged,
            Ok(true) => Looked::Changed(Ok(())),
            Err(error) => Looked::Changed(Err(error)),
        }
    }

    fn serve(&self, served: Served) {
        let served = Arc::new(served);
        self.served.store(served.clone());
        self.passwords.retain(|owner| served.owners.contains(owner));
        self.last_error.store(None);
    }

    /// Watches the file and those it names, and serves what they say; never returns.
    ///
    /// A broken edit is logged once, and leaves what was served. Editors that write a new file and
    /// rename it over the old one are followed, and so are symbolic links that are turned.
    pub async fn watch(self: Arc<Self>) {
        watch::forever(self).await;
    }

    /// How many instances are served.
    #[must_use]
    pub fn instances(&self) -> usize {
        self.served.load().owners.len()
    }

    /// Why what the file says now is not what is served; none if it is.
    #[must_use]
    pub fn last_error(&self) -> Option<String> {
        self.last_error.load().as_deref().cloned()
    }

    /// The directories in which something may change.
    fn directories(&self) -> BTreeSet<PathBuf> {
        self.lock().directories()
    }

    fn lock(&self) -> MutexGuard<'_, Sources> {
        // It is replaced as a whole, so it is sound whatever a panicking holder was doing.
        self.last_read
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Instance {
    fn page(&self, path: &[&str], guest: GuestAddress) -> Page<'_> {
        match path {
            ["openstack"] => Page::Text(Bytes::from_static(openstack::VERSION_LIST.as_bytes())),
            ["openstack", version, below @ ..] => self.openstack.page(version, below),
            ["ec2", below @ ..] | below => self.ec2.page(below, guest),
        }
    }
}

/// Reads the file at `path`, and notes in `sources` what was read on the way, also if it fails.
fn load(path: &Path, sources: &mut Sources) -> Result<Served, EmbeddedError> {
    let unreadable = |source| EmbeddedError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let invalid = |problems| EmbeddedError::Invalid {
        path: path.to_owned(),
        problems,
    };

    let content = sources.read(path).map_err(unreadable)?;
    let text = std::str::from_utf8(&content).map_err(|error| {
        let line = content[..error.valid_up_to()]
            .split(|&byte| byte == b'\n')
            .count();
        let place = Place {
            line: line as u64,
            column: 1,
        };
        invalid(vec![Problem::new(place, "this line is not UTF-8")])
    })?;
    let document = Node::parse(path, text).map_err(invalid)?;
    let mut report = Report::default();
    let mut read_file = |name: &str| sources.read(&source::directory_of(path).join(name));
    let declared = tenants::tenants(&document, &mut read_file, &mut report);
    let problems = report.into_problems();
    if !problems.is_empty() {
        return Err(invalid(problems));
    }

    let mut served = Served {
        tenants: declared.len(),
        ..Served::default()
    };
    for (tenant, instances) in declared {
        for declared in instances {
            served.owners.insert((tenant, declared.uuid));
            let instance = Arc::new(Instance {
                uuid: declared.uuid,
                openstack: openstack::Tree::of(&declared),
                ec2: ec2::Tree::of(&declared),
            });
            for &address in &declared.addresses {
                served
                    .by_address
                    .insert((tenant, address), instance.clone());
            }
        }
    }
    Ok(served)
}
