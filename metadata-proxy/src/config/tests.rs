//! Layers, and problems told all at once.

use std::{fs, path::Path};

use toml::Value;

use super::{
    settings::{SETTINGS, Shape},
    *,
};

const EXAMPLE: &str = include_str!("../../../docs/examples/metadata-proxy.toml");

/// Loads a file with this text; its name in messages is `FILE`.
fn load(text: &str) -> Result<Loaded, String> {
    load_with(text, |sources| sources)
}

fn load_with(
    text: &str,
    more: impl FnOnce(ConfigSources) -> ConfigSources,
) -> Result<Loaded, String> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("metadata-proxy.toml");
    fs::write(&file, text).unwrap();
    Config::load(&more(ConfigSources::named(&file)))
        .map_err(|errors| errors.to_string().replace(file.to_str().unwrap(), "FILE"))
}

fn flag(name: &str) -> Origin {
    Origin::Flag(name.to_owned())
}

/// Every key of a table that holds a value, with its sections.
fn keys(table: &toml::Table, prefix: &str, into: &mut Vec<String>) {
    for (key, value) in table {
        match value {
            Value::Table(inner) => keys(inner, &format!("{prefix}{key}."), into),
            _ => into.push(format!("{prefix}{key}")),
        }
    }
}

#[test]
fn the_example_file_is_the_default() {
    let loaded = load(EXAMPLE).unwrap();
    assert_eq!(loaded.config, Config::default());
    assert_eq!(loaded.warnings, []);
}

#[test]
fn the_example_file_has_every_key() {
    let example: toml::Table = EXAMPLE.parse().unwrap();
    let default = toml::Table::try_from(Config::default()).unwrap();
    let (mut in_example, mut in_default) = (Vec::new(), Vec::new());
    keys(&example, "", &mut in_example);
    keys(&default, "", &mut in_default);
    assert!(!in_default.is_empty());
    for key in &in_default {
        assert!(in_example.contains(key), "the example lacks {key}");
    }
    // Those without a default stand there as comments.
    for setting in SETTINGS.iter() {
        let name = setting.key.rsplit('.').next().unwrap();
        assert!(
            in_example.iter().any(|key| key == setting.key)
                || EXAMPLE.contains(&format!("\n# {name} = ")),
            "the example lacks {}",
            setting.key
        );
    }
}

#[test]
fn the_pattern_in_the_example_file_is_valid() {
    let start = EXAMPLE.find("# [[discovery.patterns]]").unwrap();
    let pattern: Vec<_> = EXAMPLE[start..]
        .lines()
        .map_while(|line| line.strip_prefix("# "))
        .collect();
    let pattern = pattern.join("\n");
    let config = load(&pattern).unwrap().config;
    assert_eq!(config.discovery.patterns.len(), 1);
    assert!(
        config
            .recognise("lab-a2e4cf6e-3a1c-4f2b-9d7e-0c8b5a697f10")
            .is_some()
    );
}

#[test]
fn every_setting_can_be_given_as_a_flag() {
    for setting in SETTINGS.iter() {
        let value = match &setting.shape {
            Shape::Bool => "true".to_owned(),
            Shape::Integer { range, .. } => range.end().to_string(),
            Shape::Duration(range) => humantime::format_duration(*range.end()).to_string(),
            Shape::Word(words) => words[0].to_owned(),
            Shape::Path | Shape::SocketPath => format!("/x/{}", setting.flag),
            Shape::Globs => "a*,b?".to_owned(),
            Shape::IpVersions => "4,6".to_owned(),
            Shape::Address => "upstream.example:80".to_owned(),
            Shape::LogLevel => "debug".to_owned(),
        };
        let loaded = load_with("discovery.retry_max = \"1h\"", |sources| {
            sources.with_override(setting.key, value, flag("--x"))
        });
        loaded.unwrap_or_else(|errors| panic!("{}: {errors}", setting.key));
    }
}

#[test]
fn what_is_printed_says_the_same_when_it_is_read() {
    let text = r#"
        workers = 3
        steering = { engine = "sk-lookup", cgroup = "/sys/fs/cgroup/x" }
        upstream = { kind = "http", http = { address = "http://[::1]:8775", pool_size = 0 } }
        rate_limit = { rate_limit_enabled = true, ip_versions = [6, 4], base_window_duration = 60 }
        timeouts = { connect = "1500ms" }
        [[discovery.patterns]]
        name = "lab"
        regex = 'lab-(?<id>.*)'
        kind = "ovn-network"
        interfaces = ["veth*"]
    "#;
    let config = load(text).unwrap().config;
    assert_ne!(config, Config::default());
    let printed = toml::to_string(&config).unwrap();
    assert_eq!(load(&printed).unwrap().config, config, "{printed}");
}

#[test]
fn all_problems_are_told_at_once_with_line_and_what_is_allowed() {
    let text = "\
workers = \"many\"
[listener]
port = 0
prot = 1
[steering]
engine = \"ebpf\"
cgroup = \"relative\"
[discovery]
scan_interval = \"soon\"
retry_min = \"1min\"
[[discovery.patterns]]
name = \"a\"
regex = \"(?<id>.*)\"
kind = \"router\"
surprise = true
[[discovery.patterns]]
regex = \"[\"
kind = \"switch\"
interfaces = [\"a b\"]
[interfaces]
router = [\"qr-*\",
  \"\", 7]
[upstream]
kind = \"http\"
[rate_limit]
ip_versions = [5]
[log]
level = \"inof\"
[extra]
key = 1
";
    let errors = load(text).unwrap_err();
    let starts: Vec<_> = errors
        .lines()
        .map(|line| line.split(" (allowed").next().unwrap())
        .collect();
    assert_eq!(
        starts,
        [
            "FILE:1: workers: invalid type: string \"many\"",
            "FILE:3: listener.port: 0 is out of range",
            "FILE:4: listener.prot: there is no such key",
            "FILE:6: steering.engine: \"ebpf\" is not known",
            "FILE:7: steering.cgroup: \"relative\" is not absolute",
            "FILE:9: discovery.scan_interval: \"soon\" is no duration: expected number at 0",
            "FILE:10: discovery.retry_min: is longer than discovery.retry_max",
            "FILE:15: discovery.patterns[0].surprise: there is no such key",
            "FILE:16: discovery.patterns[1].name: is missing",
            "FILE:17: discovery.patterns[1].regex: not a regular expression: unclosed character class",
            "FILE:18: discovery.patterns[1].kind: \"switch\" is no kind of tenant",
            "FILE:19: discovery.patterns[1].interfaces: \"a b\" can match no interface: interface names have no spaces, `/` or `:`",
            "FILE:22: interfaces.router: invalid type: integer `7`",
            "FILE:24: upstream.http.address: is missing, and upstream.kind = \"http\" needs it",
            "FILE:26: rate_limit.ip_versions: [5] is not valid",
            "FILE:28: log.level: \"inof\" is no level",
            "FILE:29: extra: there is no such key",
        ]
    );
    for line in errors.lines().filter(|line| !line.contains("prot")) {
        assert!(line.contains(" (allowed: "), "{line}");
    }
    assert!(
        errors.contains("listener.port: 0 is out of range (allowed: an integer from 1 to 65535)")
    );
    assert!(errors.contains("there is no such key (allowed: name, regex, kind, interfaces)"));
}

#[test]
fn every_mistake_in_syntax_is_told() {
    let errors = load("workers = \n[listener\nport = 1\n[log]\nlevel = \"info\" x\n").unwrap_err();
    let lines: Vec<_> = errors
        .lines()
        .map(|l| l.split(' ').next().unwrap())
        .collect();
    assert_eq!(lines, ["FILE:1:", "FILE:2:", "FILE:5:"], "{errors}");
    assert!(
        load("port = 1\nport = 2\n")
            .unwrap_err()
            .starts_with("FILE:2: not TOML: duplicate key")
    );
}

#[test]
fn a_file_that_ends_too_early_is_told_with_its_last_line() {
    let errors = load("workers = 1\nlistener.port").unwrap_err();
    assert!(errors.starts_with("FILE:2: not TOML"), "{errors}");
}

#[test]
fn later_layers_win_and_problems_name_their_layer() {
    let loaded = load_with("listener.port = 1\nworkers = 7\n", |sources| {
        sources
            .with_override("listener.port", "2", Origin::Environment("VARIABLE".into()))
            .with_override("listener.port", "3", flag("--listener-port"))
            .with_override(
                "interfaces.ovn-network",
                "a*, b",
                flag("--interfaces-ovn-network"),
            )
    })
    .unwrap();
    assert_eq!((loaded.config.listener.port, loaded.config.workers), (3, 7));
    assert_eq!(loaded.config.interfaces.ovn_network.len(), 2);

    let errors = load_with("[listener]\nport = 1\n[log]\nlevel = 5", |sources| {
        sources
            .with_override("listener.port", "70000", flag("--listener-port"))
            .with_override("workers", "many", Origin::Environment("WORKERS".into()))
            .with_override("upstream.kind", "embedded", flag("--upstream-kind"))
            .with_override("log.format", "a \"quoted\"\nword", flag("--log-format"))
    })
    .unwrap_err();
    let starts: Vec<_> = errors
        .lines()
        .map(|line| line.split(" (allowed").next().unwrap())
        .collect();
    assert_eq!(
        starts,
        [
            "FILE:4: log.level: invalid type: integer `5`",
            "WORKERS: workers: \"many\" is not valid",
            "--listener-port: listener.port: 70000 is out of range",
            "--log-format: log.format: \"a \\\"quoted\\\"\\nword\" is not known",
            "--upstream-kind: upstream.embedded.file: is missing, and upstream.kind = \"embedded\" needs it",
        ]
    );
}

#[test]
fn an_override_replaces_a_value_the_file_has_wrong() {
    let loaded = load_with("[upstream]\nkind = 5\n", |sources| {
        sources.with_override("upstream.kind", "agent", flag("--upstream-kind"))
    });
    assert_eq!(loaded.unwrap().config, Config::default());
}

#[test]
fn a_missing_file_is_an_error_only_if_it_was_named() {
    let missing = Path::new("/nonexistent/metadata-proxy.toml");
    let errors = Config::load(&ConfigSources::named(missing))
        .unwrap_err()
        .to_string();
    assert!(
        errors.starts_with("/nonexistent/metadata-proxy.toml: cannot be read: "),
        "{errors}"
    );
    let loaded = Config::load(&ConfigSources::if_present(missing)).unwrap();
    assert_eq!((loaded.config, loaded.file), (Config::default(), None));
}

#[test]
fn what_has_no_effect_is_a_warning() {
    let loaded = load(
        "[queue]\nmax_in_flight = 2\nmax_waiting = 10\nmax_waiting_per_tenant = 11\n\
         [limits]\nconnections = 5\nconnections_per_guest = 5000",
    )
    .unwrap();
    let keys: Vec<_> = loaded
        .warnings
        .iter()
        .map(|warning| warning.key.as_str())
        .collect();
    assert_eq!(
        keys,
        [
            "queue.max_waiting_per_tenant",
            "limits.connections_per_tenant",
            "limits.connections_per_guest",
        ]
    );
}

#[test]
fn a_variable_that_names_no_setting_is_a_warning() {
    let names = [
        "PATH",
        "METADATA_PROXY_CONFIG",
        "METADATA_PROXY_LOG_LEVEL",
        "METADATA_PROXY_PROT",
    ];
    let sources = ConfigSources::if_present("/nonexistent")
        .with_environment(names.map(Into::into).into_iter());
    let warnings = Config::load(&sources).unwrap().warnings;
    assert_eq!(
        warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["METADATA_PROXY_PROT: names no setting and is ignored"]
    );
}

#[test]
fn socket_paths_that_no_socket_can_have_are_refused() {
    let errors = load(&format!("admin.socket = \"/{}\"", "x".repeat(107))).unwrap_err();
    assert!(
        errors.contains("admin.socket: is 108 bytes long (allowed: "),
        "{errors}"
    );
    let errors = load("admin.socket = \"/run/metadata-proxy/register.sock\"").unwrap_err();
    assert!(
        errors.contains("admin.register_socket: is the same as admin.socket"),
        "{errors}"
    );
}
