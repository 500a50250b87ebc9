//! What is declared of one namespace, at most once by each provider.

use crate::tenants::{Declaration, Provider};

/// In the order of their providers. Nearly always it is one, so that a tree would be twenty times as
/// large.
#[derive(Default)]
pub(super) struct Declarations(Vec<Declaration>);

impl Declarations {
    /// That of a provider.
    pub(super) fn get(&self, provider: Provider) -> Option<&Declaration> {
        let mut declarations = self.iter();
        declarations.find(|declaration| declaration.provider == provider)
    }

    /// The one in force.
    pub(super) fn last(&self) -> Option<&Declaration> {
        self.0.last()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Declaration> {
        self.0.iter()
    }

    /// Adds one, in place of what its provider has said before.
    pub(super) fn insert(&mut self, declaration: Declaration) {
        let place = |it: &Declaration| it.provider.cmp(&declaration.provider);
        match self.0.binary_search_by(place) {
            Ok(at) => self.0[at] = declaration,
            Err(at) => {
                self.0.reserve_exact(1);
                self.0.insert(at, declaration);
            }
        }
    }

    /// Takes out that of a provider.
    pub(super) fn remove(&mut self, provider: Provider) -> Option<Declaration> {
        let at = self.0.iter().position(|it| it.provider == provider)?;
        Some(self.0.remove(at))
    }
}

#[cfg(test)]
mod tests {
    use metadata_proxy_common::TenantKind;
    use uuid::Uuid;

    use super::*;
    use crate::{identity::Tenant, netns::NetnsId, tenants::Source};

    fn declaration(provider: Provider, number: u128) -> Declaration {
        Declaration {
            provider,
            tenant: Tenant {
                kind: TenantKind::Router,
                id: Uuid::from_u128(number),
            },
            name: String::new(),
            netns: NetnsId::from_parts(4, 1),
            source: Source::Path("/run/netns/a".into()),
            interfaces: Vec::new(),
            settings: None,
        }
    }

    #[test]
    fn the_last_provider_is_in_force_whoever_came_first_and_each_has_one_say() {
        let mut declarations = Declarations::default();
        for (provider, number) in [
            (Provider::Admin, 1),
            (Provider::Register, 2),
            (Provider::Map, 3),
            (Provider::Admin, 4),
        ] {
            declarations.insert(declaration(provider, number));
        }
        let number = |of: &Declaration| of.tenant.id.as_u128();
        let numbers: Vec<_> = declarations.iter().map(number).collect();
        assert_eq!(numbers, [3, 4, 2]);
        let removed = declarations.remove(Provider::Register);
        assert_eq!(removed.as_ref().map(number), Some(2));
        assert_eq!(declarations.last().map(number), Some(4));
        assert!(declarations.get(Provider::NetnsDir).is_none());
        assert!(declarations.remove(Provider::Register).is_none());
    }
}
