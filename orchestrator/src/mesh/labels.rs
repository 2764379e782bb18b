//! Groups that this host keeps, and the certificates of labels that it shows to others.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use mesh_node::acl::AclFrom;
use mesh_node::orders::Order;
use net_vdev::PrivateKey;
use net_vdev::PublicKey;
use net_vdev::certificate::{self, Label, LabelCertificate};
use net_vdev::signature::RANDOM_BYTES;
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::json;

use super::arguments::{CertificateVerb, GroupVerb};
use super::{MeshError, folder, key, print, tell_node};
use crate::clock::unix_time_ns;
use crate::state::{self, Common};

/// The file of certificates in the node's folder: a list of texts.
const FILE: &str = "certificates.json";
const BYTES_MAX: u64 = 1 << 20;
const DAY_S: u64 = 86_400;

/// `hypha mesh group`.
pub(super) fn groups(verb: &GroupVerb) -> Result<i32, MeshError> {
    match verb {
        GroupVerb::New { name, common } => {
            let path = groups_folder(common)?.join(name.as_str());
            let public = PrivateKey::new(*state::key(&path)?.expose()).public();
            tell(common, &[(name.as_str().to_owned(), public)])
        }
        GroupVerb::Show { name: None, common, .. } => tell(common, &all(common)?),
        GroupVerb::Show { name: Some(name), quiet, common } => {
            let public = signer(common, name.as_str())?.public();
            if *quiet {
                return print(&format!("{public}\n"));
            }
            tell(common, &[(name.as_str().to_owned(), public)])
        }
        GroupVerb::Give { name, label, member, days, common } => {
            let signer = signer(common, name.as_str())?;
            let given = LabelCertificate {
                label: Label { group: signer.public(), name: *label },
                member: PublicKey(member.0),
                expires_unix_s: now_s() + u64::from(*days) * DAY_S,
            };
            let mut random = [0; RANDOM_BYTES];
            let drawn = SystemRandom::new().fill(&mut random);
            drawn
                .map_err(|_| MeshError::Io(io::Error::other("the kernel gives no random bytes")))?;
            let signed = given.sign(&signer, &random);
            let signed = signed.map_err(|error| MeshError::Certificate(error.to_string()))?;
            let text = certificate::to_hex(&signed);
            if common.json {
                let object = json!({"certificate": text, "expires_unix_s": given.expires_unix_s});
                return print(&format!("{object}\n"));
            }
            print(&format!("{text}\n"))
        }
    }
}

/// Seconds since 1970.
fn now_s() -> u64 {
    unix_time_ns() / 1_000_000_000
}

fn groups_folder(common: &Common) -> Result<PathBuf, MeshError> {
    let groups = folder(common)?.join("groups");
    state::create_directory(&groups)?;
    Ok(groups)
}

/// The key of a group that exists.
fn signer(common: &Common, name: &str) -> Result<PrivateKey, MeshError> {
    let path = groups_folder(common)?.join(name);
    if !path.join("key").is_file() {
        return Err(MeshError::NoGroup(name.to_owned()));
    }
    key(&path)
}

fn all(common: &Common) -> Result<Vec<(String, PublicKey)>, MeshError> {
    let mut groups = Vec::new();
    for entry in fs::read_dir(groups_folder(common)?)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        groups.push((name.clone(), signer(common, &name)?.public()));
    }
    groups.sort();
    Ok(groups)
}

fn tell(common: &Common, groups: &[(String, PublicKey)]) -> Result<i32, MeshError> {
    if common.json {
        let list: Vec<_> = groups
            .iter()
            .map(|(name, key)| json!({"name": name, "key": key.to_string()}))
            .collect();
        return print(&format!("{}\n", json!(list)));
    }
    print(&groups.iter().map(|(name, key)| format!("{key}  {name}\n")).collect::<String>())
}

/// `hypha mesh certificate`.
pub(super) fn certificates(verb: &CertificateVerb) -> Result<i32, MeshError> {
    let (CertificateVerb::List(common)
    | CertificateVerb::Add { common, .. }
    | CertificateVerb::Remove { common, .. }) = verb;
    let folder = folder(common)?;
    let mut texts = load_texts(&folder)?;
    let own = key(&folder)?.public();
    match verb {
        CertificateVerb::List(_) => return list(common, &own, &texts),
        CertificateVerb::Add { certificate, .. } => {
            let text = certificate.trim();
            let held = read(text, &own).map_err(MeshError::Certificate)?;
            // A newer one of the same label takes the place of the older, also if that has ended.
            texts.retain(|other| label_of(other, &own) != Some(held.label));
            texts.push(text.to_owned());
        }
        CertificateVerb::Remove { label, .. } => {
            let before = texts.len();
            texts.retain(|other| !is_called(other, &own, label));
            if texts.len() == before {
                return Err(MeshError::NoCertificate(label.clone()));
            }
        }
    }
    let mut text = serde_json::to_string_pretty(&texts).map_err(io::Error::from)?;
    text.push('\n');
    state::write_whole(&folder.join(FILE), text.as_bytes())?;
    tell_node(common, &Order::Certificates { certificates: texts })
}

fn read(text: &str, own: &PublicKey) -> Result<LabelCertificate, String> {
    read_at(text, own, now_s())
}

fn read_at(text: &str, own: &PublicKey, unix_s: u64) -> Result<LabelCertificate, String> {
    let bytes = certificate::from_hex(text)
        .ok_or_else(|| "expected the hexadecimal digits of `hypha mesh group give`".to_owned())?;
    LabelCertificate::verify(&bytes, own, unix_s).map_err(|error| error.to_string())
}

/// The label of a certificate, whether it has ended or not.
fn label_of(text: &str, own: &PublicKey) -> Option<Label> {
    read_at(text, own, 0).ok().map(|it| it.label)
}

/// Whether the owner means this certificate: by its label, or as it is if nothing else can be said.
fn is_called(text: &str, own: &PublicKey, name: &str) -> bool {
    let is_label = |label| AclFrom::Label(label).to_string() == name;
    label_of(text, own).is_some_and(is_label) || text == name
}

/// `GROUP/LABEL`, or what is wrong.
fn name_of(text: &str, own: &PublicKey) -> String {
    match read(text, own) {
        Ok(held) => AclFrom::Label(held.label).to_string(),
        Err(reason) => match label_of(text, own) {
            Some(label) => format!("{}: {reason}", AclFrom::Label(label)),
            None => format!("{text}: {reason}"),
        },
    }
}

fn list(common: &Common, own: &PublicKey, texts: &[String]) -> Result<i32, MeshError> {
    let held = texts.iter().map(|text| (name_of(text, own), read(text, own).ok()));
    let held = held.map(|(name, held)| (name, held.map(|held| held.expires_unix_s)));
    if common.json {
        let list: Vec<_> =
            held.map(|(label, ends)| json!({"label": label, "expires_unix_s": ends})).collect();
        return print(&format!("{}\n", json!(list)));
    }
    let line = |(name, ends): (String, Option<u64>)| match ends {
        Some(ends) => {
            let days = ends.saturating_sub(now_s()) / DAY_S;
            format!("{name}  ends in {days} days\n")
        }
        None => format!("of no use: {name}\n"),
    };
    print(&held.map(line).collect::<String>())
}

/// The certificates of a node's folder; none if there is no file.
pub(super) fn load(folder: &Path) -> Result<Vec<Vec<u8>>, MeshError> {
    let texts = load_texts(folder)?;
    Ok(texts.iter().filter_map(|text| certificate::from_hex(text)).collect())
}

fn load_texts(folder: &Path) -> Result<Vec<String>, MeshError> {
    super::acl::read_list(&folder.join(FILE), BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_that_has_ended_gives_way_to_a_newer_one_and_goes_by_its_label() {
        let state = tempfile::tempdir().unwrap();
        let common = Common { json: false, state: Some(state.path().to_owned()) };
        let folder = folder(&common).unwrap();
        let own = key(&folder).unwrap().public();
        let group = PrivateKey::new([7; 32]);
        let label = Label { group: group.public(), name: "web".parse().unwrap() };
        let text = |expires_unix_s| {
            let given = LabelCertificate { label, member: own, expires_unix_s };
            certificate::to_hex(&given.sign(&group, &[1; RANDOM_BYTES]).unwrap())
        };
        let (ended, fresh) = (text(1000), text(now_s() + 1000));
        let write = |texts: &[&String]| {
            fs::write(folder.join(FILE), serde_json::to_vec(texts).unwrap()).unwrap();
        };
        write(&[&ended]);
        let add = CertificateVerb::Add { certificate: fresh.clone(), common };
        assert_eq!(certificates(&add).unwrap(), 0);
        assert_eq!(load_texts(&folder).unwrap(), std::slice::from_ref(&fresh));

        write(&[&ended]);
        let common = Common { json: false, state: Some(state.path().to_owned()) };
        let name = AclFrom::Label(label).to_string();
        assert!(name_of(&ended, &own).starts_with(&name), "the list says which it is");
        let remove = CertificateVerb::Remove { label: name, common };
        assert_eq!(certificates(&remove).unwrap(), 0);
        assert!(load_texts(&folder).unwrap().is_empty());
        let error = certificates(&remove).unwrap_err().to_string();
        assert!(error.contains("`hypha mesh certificate list`"), "{error}");
    }
}
