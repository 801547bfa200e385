//! Limits of backing calls, which are the cost on Redox. A test fails if an operation needs more of
//! them. `cargo bench --bench cost` prints all costs.

use overlayfs::layer::counted::Method;

#[path = "cost/measure.rs"]
mod measure;
#[path = "cost/requests.rs"]
mod requests;

#[test]
fn every_operation_keeps_its_limit_of_backing_calls() {
    let rows = measure::rows().into_iter().chain(measure::dated_rows());
    let dear: Vec<_> = rows.filter(|row| row.warm.total() > row.most).map(|row| row.line()).collect();
    assert!(dear.is_empty(), "{dear:#?}");
}

#[test]
fn a_cold_walk_reads_each_directory_once_in_each_layer() {
    for layers in [1, 4, 64] {
        // The overlay lists the root and one directory in every layer, and reads their marks. It
        // opens the directory in every layer, and stats every object.
        let most = 5 * layers as u64 + 1 + 10 * layers as u64;
        let walk = measure::cold_walk(layers);
        assert!(walk.total() <= most, "{layers} layers: {walk}, at most {most}");
    }
}

#[test]
fn a_step_far_below_opens_few_directories() {
    let [first, next] = measure::deep_steps(600);
    // The walk opens each directory on the way once in each layer, and a second time the ones near
    // the end.
    assert!(first.of(Method::OpenDir) <= 2 * 602, "{first}");
    assert!(next.of(Method::OpenDir) <= 2 * 20, "{next} for 20 directories");
}

#[test]
fn every_operation_keeps_its_limit_of_redoxfs_requests() {
    let is_dear = |row: &requests::Row| row.overlay.total() > row.most;
    let dear: Vec<_> = requests::rows().into_iter().filter(is_dear).map(|row| row.line()).collect();
    assert!(dear.is_empty(), "{dear:#?}");
}
