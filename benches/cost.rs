//! What the overlay costs, as Markdown: backing calls per operation, and requests to redoxfs.
//! `cargo bench --bench cost` prints it; `docs/cost.md` is its output.

#[path = "../tests/cost/measure.rs"]
mod measure;
#[path = "../tests/cost/requests.rs"]
mod requests;

fn main() {
    println!("# What the overlay costs\n");
    println!(
        "Printed by `cargo bench --bench cost`, on a filesystem where a copy needs a sync; on ext4 and XFS `write_through` takes its place.\n"
    );
    println!("## Backing calls\n");
    println!(
        "Calls of the engine to its layers, for one operation: *warm*, when every directory was read and every object was looked at; *cold*, \
         on a new overlay, with all that is needed to find the object. What is above the goal is bold. The *goal* of what is done once only (a copy-up, a \
         marker) allows 1 to 3 calls for each. `tests/cost.rs` fails if a warm number comes above its *limit*.\n"
    );
    println!("| operation | goal | limit | warm | cold |\n| --- | --- | --- | --- | --- |");
    for row in measure::rows() {
        println!("{}", row.line());
    }
    println!("\nA walk over a cold tree of two directories and 10 files in each layer:\n");
    println!("| lower layers | calls |\n| --- | --- |");
    for layers in [1, 4, 64] {
        println!("| {layers} | {} |", measure::cold_walk(layers));
    }
    println!("\nA directory far below in two layers, after 300 others, and then 20 directories in it:\n");
    println!("| directories above | calls for the first | for the 20 |\n| --- | --- | --- |");
    for depth in [100, 300, 600] {
        let [first, next] = measure::deep_steps(depth);
        println!("| {depth} | {first} | {next} |");
    }
    println!("\n## Requests on Redox\n");
    println!(
        "Requests that arrive at redoxfs (the delegate's) for one operation of a program: through an overlay of two layers on it, warm, and on \
         redoxfs itself. Nobody waits for the answer to a *close*. A file of another user than the daemon's is built in the work directory, \
         since the scheme makes the daemon its owner at first, and its name must not show before it is the user's: so a goal below 1.67, two \
         requests more than redoxfs's own three, is out of reach there. `tests/cost.rs` fails if the overlay needs more than the *limit*.\n"
    );
    println!("| operation | goal | ratio | limit | overlay | redoxfs itself |\n| --- | --- | --- | --- | --- | --- |");
    for row in requests::rows() {
        println!("{}", row.line());
    }
}
