//! The control plane's lookups as the data plane asks for them: `proxy::needs::Finder` over `control`.

use control::xds;
use mesh::{NamespacedHostname, NetworkAddress};
use proxy::needs::{self, Pending};

/// Asks the control plane for single addresses and names.
pub struct Finder(pub xds::Finder);

impl needs::Finder for Finder {
    fn address<'a>(&'a self, address: &'a NetworkAddress) -> Pending<'a, Result<bool, String>> {
        Box::pin(async {
            let found = self.0.address(&address.network, address.ip).await;
            found.map_err(|error| error.to_string())
        })
    }

    fn host<'a>(&'a self, name: &'a NamespacedHostname) -> Pending<'a, Result<bool, String>> {
        Box::pin(async {
            let found = self.0.host(&name.namespace, &name.hostname).await;
            found.map_err(|error| error.to_string())
        })
    }
}
