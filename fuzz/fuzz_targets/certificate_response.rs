//! Any answer of the Istio CA, up to a credential for TLS.
#![no_main]

use std::sync::LazyLock;

use identity::{Credential, Tls, csr};
use libfuzzer_sys::fuzz_target;
use mesh::SpiffeId;
use prost::Message as _;
use proto::ca::IstioCertificateResponse;

static TLS: LazyLock<Tls> = LazyLock::new(|| Tls::new(false, false));

fuzz_target!(|bytes: &[u8]| {
    let Ok(response) = IstioCertificateResponse::decode(bytes) else {
        return;
    };
    let id = SpiffeId::new("cluster.local", "shop", "cart");
    let request = csr::Request::new(&id).expect("a name that a certificate can hold");
    if let Ok(issued) = request.finish(response.cert_chain) {
        let credential = Credential::new(&id, issued, true, &TLS);
        assert!(credential.is_err(), "its key was made a moment ago");
    }
});
