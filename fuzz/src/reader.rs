//! A parser of requests that shares nothing with the agent's: strict, slow, and short enough to be
//! checked by reading it.

/// A request as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Read {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Read {
    /// All values of a header.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let its = move |(other, _): &&(String, String)| other.eq_ignore_ascii_case(name);
        self.headers.iter().filter(its).map(|(_, value)| &**value)
    }
}

/// Reads a head: lines that end with CRLF, an empty one last. Gives back what follows.
pub(crate) fn head(bytes: &[u8]) -> Option<(Read, &[u8])> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let (text, rest) = (&bytes[..end], &bytes[end + 4..]);
    let mut lines = Vec::new();
    for line in text.split(|byte| *byte == b'\n') {
        lines.push(line.strip_suffix(b"\r").unwrap_or(line));
    }
    // A CR that is not before a LF, or a LF that is not behind a CR, is no line end.
    let joined = lines.join(&b"\r\n"[..]);
    if joined != text || lines.iter().any(|line| line.contains(&b'\r')) {
        return None;
    }
    let mut lines = lines.into_iter();
    let first = std::str::from_utf8(lines.next()?).ok()?;
    let mut words = first.split(' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    if words.next().is_some() || version != "HTTP/1.1" || !is_token(method) {
        return None;
    }
    if target.is_empty() || !target.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    let mut headers = Vec::new();
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = std::str::from_utf8(&line[..colon]).ok()?;
        let value = line[colon + 1..].trim_ascii();
        if !is_token(name)
            || value
                .iter()
                .any(|byte| *byte < b' ' && *byte != b'\t' || *byte == 127)
        {
            return None;
        }
        headers.push((name.to_owned(), String::from_utf8_lossy(value).into_owned()));
    }
    let read = Read {
        method: method.to_owned(),
        target: target.to_owned(),
        headers,
        body: Vec::new(),
    };
    Some((read, rest))
}

fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// Reads bytes that are nothing but requests about which nobody can disagree; `None` if there is
/// anything else.
pub(crate) fn plain_requests(mut bytes: &[u8]) -> Option<Vec<Read>> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let whole = bytes.len();
        let (mut read, mut rest) = head(bytes)?;
        if !is_plain(&read) {
            return None;
        }
        let length = read.all("content-length").next().map(str::to_owned);
        let has_chunks = read.all("transfer-encoding").next().is_some();
        match (length, has_chunks) {
            (Some(_), true) => return None,
            (None, false) => {}
            (Some(length), false) => {
                let length: usize = length.parse().ok()?;
                read.body = rest.get(..length)?.to_vec();
                rest = &rest[length..];
            }
            (None, true) => loop {
                let end = rest.windows(2).position(|two| two == b"\r\n")?;
                let size = std::str::from_utf8(&rest[..end]).ok()?;
                if size.is_empty() || size.len() > 3 || !size.bytes().all(|b| b.is_ascii_hexdigit())
                {
                    return None;
                }
                let size = usize::from_str_radix(size, 16).ok()?;
                rest = &rest[end + 2..];
                if size == 0 {
                    rest = rest.strip_prefix(b"\r\n")?;
                    break;
                }
                read.body.extend_from_slice(rest.get(..size)?);
                rest = rest[size..].strip_prefix(b"\r\n")?;
            },
        }
        // Well within what anybody takes; and a body that looks like a head is another matter.
        if whole - rest.len() > 2000 || !read.body.iter().all(u8::is_ascii_alphanumeric) {
            return None;
        }
        bytes = rest;
        all.push(read);
    }
    Some(all)
}

fn is_plain(read: &Read) -> bool {
    const METHODS: [&str; 5] = ["GET", "HEAD", "POST", "PUT", "DELETE"];
    const NAMES: [&str; 6] = [
        "host",
        "user-agent",
        "accept",
        "x-neutron-router-id",
        "content-length",
        "transfer-encoding",
    ];
    let is_path = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte);
    METHODS.contains(&&*read.method)
        && read.target.starts_with('/')
        && !read.target.starts_with("//")
        && read.target.bytes().all(is_path)
        && read.headers.len() <= 20
        && read.headers.iter().all(|(name, value)| {
            NAMES.contains(&&*name.to_ascii_lowercase())
                && !value.is_empty()
                && value
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'.')
        })
        && read.all("host").count() == 1
        && read.all("content-length").count() <= 1
        && read
            .all("content-length")
            .all(|length| length.len() <= 4 && length.bytes().all(|byte| byte.is_ascii_digit()))
        && read.all("transfer-encoding").count() <= 1
        && read
            .all("transfer-encoding")
            .all(|coding| coding == "chunked")
}
