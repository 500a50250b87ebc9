//! A corpus of requests through the real haproxy, configured as Neutron does, and through the agent:
//! what upstreams see and what guests get differs in nothing but what `intended` lists.
#![expect(
    clippy::unwrap_used,
    reason = "what fails here fails the test, as it should"
)]

mod corpus;
mod difference;
mod document;
mod intended;
mod observe;
mod settings;
mod upstream;

use std::thread;

use self::{
    difference::{Seen, judge},
    settings::SETTINGS,
    upstream::Style,
};

#[test]
fn nothing_differs_from_haproxy_but_what_is_intended() {
    let cases = corpus::corpus();
    let compared: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> = SETTINGS
            .map(|setting| {
                let cases = match setting.style {
                    Style::Absent => &cases[..1],
                    Style::Agent | Style::Server => &cases[..],
                };
                scope.spawn(move || setting.compare(cases))
            })
            .into_iter()
            .collect();
        running
            .into_iter()
            .map(|running| running.join().unwrap())
            .collect()
    });
    let intended = intended::intended();
    let mut seen = Seen::new();
    let wrong: Vec<_> = compared
        .iter()
        .flat_map(|compared| judge(&cases, compared, &intended, &mut seen))
        .collect();
    assert!(
        wrong.is_empty(),
        "{} unexpected:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    document::check(&cases, &intended, &seen);
}
