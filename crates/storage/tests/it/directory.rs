use ids::{NodeId, RegionId};
use storage::{Directory, Error, Identity};

fn identity() -> Identity {
    Identity { cluster: 7, node: NodeId(1), region: RegionId(0), shards: 4, joined: false }
}

#[test]
fn it_keeps_its_identity_and_admits_one_process() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("node");
    let directory = Directory::open(&path, &identity()).unwrap();
    assert!(matches!(Directory::open(&path, &identity()), Err(Error::InUse(_))));
    drop(directory);
    let other = Identity { cluster: 8, ..identity() };
    assert_eq!(Directory::open(&path, &other).unwrap().identity(), &identity());
}

#[test]
fn foreign_newer_and_corrupt_directories_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let foreign = temp.path().join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("precious.txt"), "x").unwrap();
    let error = Directory::open(&foreign, &identity()).unwrap_err();
    assert!(matches!(error, Error::Foreign { .. }) && error.to_string().contains("precious.txt"), "{error}");

    let path = temp.path().join("node");
    drop(Directory::open(&path, &identity()).unwrap());
    std::fs::write(path.join("LAYOUT"), "2\n").unwrap();
    let error = Directory::open(&path, &identity()).unwrap_err();
    assert!(matches!(error, Error::Newer { found: 2, .. }), "{error}");
    std::fs::write(path.join("LAYOUT"), "1\n").unwrap();

    let mut bytes = std::fs::read(path.join("identity")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(path.join("identity"), bytes).unwrap();
    let error = Directory::open(&path, &identity()).unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
}
