"""Batches: what a job is, resuming, workers that die, and the same pictures from processes and from a Ray cluster."""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import Future

import numpy as np
import psutil
import pytest
from click.testing import CliRunner
from PIL import Image

import segue
from segue.cli import cli
from segue.errors import BundleError, Cancelled, SegueError, UsageError
from segue.runtime.batch.job_file import read_jobs
from segue.runtime.batch.jobs import RESULTS, Ledger, Made, packed
from segue.runtime.batch.workers import LocalWorkers, RayWorkers, run_batch
from segue.runtime.bundle.reader import read
from segue.runtime.media.provenance import read_file

BUNDLE = "emoji"


@pytest.fixture(scope="module")
def opened():
    return read(BUNDLE)


@pytest.fixture
def written(tmp_path):
    def write(*jobs):
        path = tmp_path / "jobs.jsonl"
        path.write_text("".join(job if isinstance(job, str) else json.dumps(job) + "\n" for job in jobs), "utf-8")
        return path

    return write


def asked(seed, **values):
    return {"id": f"job-{seed}", "prompt": "a red heart", "seed": seed, "steps": 1, "size": "64x64", **values}


def rows(folder):
    return [json.loads(line) for line in (folder / RESULTS).read_text().splitlines()]


def pixels(folder):
    return {path.name: np.asarray(Image.open(path)).tobytes() for path in sorted(folder.glob("*.png"))}


@pytest.fixture
def batch(written, tmp_path):
    def run(*jobs, out="out", options=()):
        command = ["batch", str(written(*jobs)), "-o", str(tmp_path / out), "--bundle", BUNDLE, *options]
        return CliRunner().invoke(cli, command), tmp_path / out

    return run


def test_a_job_gives_the_picture_that_the_model_gives_and_a_line(batch):
    told, out = batch(asked(3, size="80x64"), asked(4))
    assert told.exit_code == 0, told.output
    with segue.open(BUNDLE) as model:
        expected = model.generate("a red heart", seed=3, steps=1, size=(64, 80))
    assert np.array_equal(np.asarray(Image.open(out / "job-3.png")), expected)
    assert [(row["id"], row["state"], row["file"]) for row in rows(out)] == [
        ("job-3", "done", "job-3.png"),
        ("job-4", "done", "job-4.png"),
    ]


@pytest.fixture
def pictures(tmp_path):
    """Pictures beside the file of jobs: one to begin with, and its mask."""
    rows, columns = np.mgrid[0:64, 0:64]
    image = np.stack([rows * 3, columns * 3, rows + columns], -1).astype(np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    mask[16:40, 16:40] = 255
    Image.fromarray(image).save(tmp_path / "in.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return image, mask


def test_a_job_begins_with_a_picture_beside_the_file_of_jobs(batch, pictures):
    image, mask = pictures
    whole, behind = {"image": "in.png", "strength": 0.5, "steps": 4}, {"image": "in.png", "mask": "mask.png"}
    told, out = batch(asked(1, **whole), asked(2, **behind, feather=1))
    assert told.exit_code == 0, told.output
    with segue.open(BUNDLE) as model:
        first = model.generate("a red heart", seed=1, steps=4, size=64, image=image, strength=0.5)
        second = model.generate("a red heart", seed=2, steps=1, size=64, image=image, mask=mask, feather=1)
    assert np.array_equal(np.asarray(Image.open(out / "job-1.png")), first)
    assert np.array_equal(np.asarray(Image.open(out / "job-2.png")), second)


def test_a_job_is_done_again_if_the_bytes_of_its_mask_have_changed(batch, written, opened, pictures, tmp_path):
    jobs = [asked(1, image="in.png"), asked(2, image="in.png", mask="mask.png")]
    batch(*jobs)
    Image.fromarray(np.full((64, 64), 255, np.uint8)).save(tmp_path / "mask.png")
    told, _ = batch(*jobs)
    assert "1 done, 0 failed, 1 done before" in told.output
    job = read_jobs(written(jobs[1]), opened.manifest, opened.digest)[0]
    assert packed(job).arguments["mask"] == (tmp_path / "mask.png").read_bytes()
    (tmp_path / "mask.png").write_bytes(b"other")
    with pytest.raises(UsageError, match="was changed while the batch ran"):
        packed(job)


def test_a_signed_job_states_its_picture_also_without_metadata(batch, pictures, certificate):
    keys = ["--certificate", str(certificate.chain), "--key", str(certificate.key), "--no-metadata"]
    _, out = batch(asked(1, image="in.png"), options=keys)
    data = (out / "job-1.png").read_bytes()
    assert b"compositeWithTrainedAlgorithmicMedia" in data
    assert b"sha256 of" not in data


def test_files_that_are_to_say_nothing_of_how_they_were_made_are_other_jobs(batch):
    _, out = batch(asked(1))
    assert read_file(out / "job-1.png")["metadata"]["prompt"] == "a red heart"
    told, out = batch(asked(1), options=["--no-metadata"])
    assert "1 done, 0 failed" in told.output
    assert read_file(out / "job-1.png")["metadata"] is None


def test_files_are_signed_here_and_drawn_again_where_they_were_not(batch, certificate):
    batch(asked(1))
    keys = ["--certificate", str(certificate.chain), "--key", str(certificate.key)]
    told, out = batch(asked(1), options=keys)
    assert "1 done, 0 failed" in told.output
    said = read_file(out / "job-1.png")
    assert said["signature"]["signer"] == "Somebody"
    assert said["signature"]["valid"]
    assert said["metadata"]["prompt"] == "a red heart"
    told, _ = batch(asked(1), options=keys)
    assert "0 done, 0 failed, 1 done before" in told.output


def test_what_is_done_is_not_done_again_unless_its_file_has_changed(batch):
    _, out = batch(asked(1), asked(2))
    (out / "job-2.png").write_bytes(b"something else")
    told, _ = batch(asked(1), asked(2), asked(3))
    assert "2 done, 0 failed, 1 done before" in told.output
    assert [row["id"] for row in rows(out)] == ["job-1", "job-2", "job-2", "job-3"]


def test_a_changed_job_of_the_same_name_is_done_again(batch):
    _, out = batch(asked(1))
    before = pixels(out)
    batch(asked(1, prompt="pizza"))
    assert pixels(out) != before


def test_a_line_that_was_cut_off_is_no_line(batch):
    _, out = batch(asked(1))
    with (out / RESULTS).open("a") as file:
        file.write('{"id": "job-2", "state"')
    told, _ = batch(asked(1), asked(2))
    assert told.exit_code == 0, told.output
    assert [row["id"] for row in rows(out)] == ["job-1", "job-2"]


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ("{no json\n", "line 1 is not JSON"),
        ('[{"prompt": "x"}]\n', "is a JSON array. Write one JSON object on each line"),
        ({"seed": 1}, "prompt is missing"),
        (asked(1, size="65x64"), "size 65x64"),
        (asked(1, size=[64, 64]), "not a size. Write 128, or width x height"),
        (asked(1, shape=2), "a job has no key 'shape'"),
        (asked(1, id="../out"), "id must be a file name"),
        (asked(1, strength=0.5), "strength was given without a picture"),
        (asked(1, image=7), "image must be the path of a picture, relative to the file of jobs, got 7"),
        (asked(1, image="none.png"), "none.png cannot be read as a picture"),
        (asked(1, references="a.png"), "references must be a list of paths"),
        (asked(-1, id="minus"), "seed"),
        ("", "holds no job"),
    ],
)
def test_a_wrong_job_is_refused_by_its_line_before_anything_is_drawn(written, opened, job, message):
    with pytest.raises(UsageError, match=message):
        read_jobs(written(job), opened.manifest, opened.digest)


def test_jobs_without_a_seed_draw_one_and_keep_it_when_they_are_drawn_again(batch):
    jobs = [{"id": name, "prompt": "pizza", "steps": 1, "size": "64x64", **more} for name, more in SEEDLESS]
    told, out = batch(*jobs)
    assert told.exit_code == 0, told.output
    assert f"the seeds are in {out / RESULTS}" in told.output.replace("\n", "")
    seeds = {row["id"]: row["seed"] for row in rows(out)}
    assert {name: read_file(out / f"{name}.png")["metadata"]["seed"] for name in seeds} == seeds
    assert len(set(seeds.values())) == 3
    before = pixels(out)
    for path in out.glob("*.png"):
        path.unlink()
    told, _ = batch(*jobs, {"id": "d", "prompt": "pizza", "steps": 1, "size": "64x64", "seed": 7}, options=["--json"])
    results = [json.loads(line) for line in told.output.splitlines() if '"result"' in line]
    assert {row["id"]: row["seed"] for row in results} == seeds | {"d": 7}
    assert pixels(out) | before == pixels(out)


SEEDLESS = (("a", {}), ("b", {}), ("c", {"seed": None}))


def test_results_of_earlier_versions_mean_seed_0(batch, written, opened, tmp_path):
    _, out = batch({"prompt": "pizza", "id": "a", "steps": 1, "size": "64x64"})
    (row,) = rows(out)
    del row["seed"]
    (out / RESULTS).write_text(json.dumps(row) + "\n")
    jobs = read_jobs(tmp_path / "jobs.jsonl", opened.manifest, opened.digest)
    with Ledger(out) as ledger:
        assert ledger.seeded(jobs[0]).arguments["seed"] == 0


def test_a_list_of_prompts_is_drawn_into_files_with_their_names(batch):
    told, out = batch("\ufeffa red heart\r\n\n  pizza\npizza\n🍕\n一只猫\ncon\n")
    assert told.exit_code == 0, told.output
    made = ["a-red-heart", "pizza", "pizza-2", "pizza-3", "一只猫", "picture-con"]
    assert [row["id"] for row in rows(out)] == made
    assert read_file(out / "a-red-heart.png")["metadata"]["prompt"] == "a red heart"
    told, _ = batch("rocket\na red heart\npizza\npizza\n🍕\n一只猫\ncon\n")
    assert "1 done, 0 failed, 6 done before" in told.output.replace("\n", "")


def test_a_name_that_is_counted_never_meets_one_that_ends_in_a_number(written, opened):
    jobs = read_jobs(written("pizza\npizza 2\npizza\npizza\n"), opened.manifest, opened.digest)
    assert [job.name for job in jobs] == ["pizza", "pizza-2", "pizza-3", "pizza-4"]


def test_a_list_of_prompts_is_no_batch_of_videos(video_bundle, written):
    videos = read(video_bundle)
    with pytest.raises(UsageError, match=r"is a list of prompts, and .* makes videos"):
        read_jobs(written("a dog\n"), videos.manifest, videos.digest)


def test_all_wrong_lines_are_told_at_once_and_many_are_counted(written, opened):
    with pytest.raises(UsageError) as refused:
        read_jobs(written(asked(1), "{no\n", asked(1), asked(-1, id="minus"), {}), opened.manifest, opened.digest)
    head, *lines, advice = str(refused.value).splitlines()
    assert head.endswith("has 4 wrong lines:")
    assert [line.split(":")[0].split(" is")[0] for line in lines] == ["  line 2", "  line 3", "  line 4", "  line 5"]
    assert "another job has the id 'job-1'" in lines[1]
    assert advice.strip() == "Correct them; nothing was drawn."
    with pytest.raises(UsageError) as refused:
        read_jobs(written(*[{"prompt": "x" * 10_000, "wrong": 1}] * 50), opened.manifest, opened.digest)
    lines = str(refused.value).splitlines()
    assert len(lines) == 23
    assert lines[-2] == "  and 30 more."
    assert len(str(refused.value)) < 7000


def test_what_a_prompt_lacks_is_told_with_its_job(batch):
    told, out = batch(asked(1, prompt="words " * 300), options=["--json"])
    assert told.exit_code == 0, told.output
    (row,) = rows(out)
    assert any("is longer than" in text for text in row["warnings"])
    warned = [json.loads(line) for line in told.stdout.splitlines() if '"warning"' in line]
    assert {event["text"] for event in warned if event["event"] == "warning"} == {
        f"job-1: {text}" for text in row["warnings"]
    }


def test_a_stop_finishes_the_jobs_that_run_and_begins_no_other(written, opened, tmp_path):
    jobs = read_jobs(written(*(asked(seed) for seed in range(5))), opened.manifest, opened.digest)
    done = []
    with (
        Ledger(tmp_path / "out") as ledger,
        pytest.raises(Cancelled, match=r"jobs were not begun\. Run the same"),
    ):
        run_batch(jobs, ledger, OneByOne(done), done.append, lambda: len(done) >= 2)
    assert [row["id"] for row in rows(tmp_path / "out")] == ["job-0", "job-1"]


def test_two_jobs_of_one_name_are_refused(written, opened):
    with pytest.raises(UsageError, match="another job has the id 'job-1'"):
        read_jobs(written(asked(1), asked(1)), opened.manifest, opened.digest)


def test_a_worker_that_is_killed_costs_no_job_and_repeats_none(written, opened, tmp_path):
    jobs = read_jobs(written(*(asked(seed) for seed in range(10))), opened.manifest, opened.digest)
    workers, killed = LocalWorkers(BUNDLE, opened.digest, 2, 1), []

    def kill(row):
        if len(killed) < 1 and int(row["id"][4:]) >= 3:
            killed.append(int(row["worker"].rpartition(":")[2]))
            os.kill(killed[0], signal.SIGKILL)

    told = run_batch(jobs, Ledger(tmp_path / "out"), workers, kill)
    workers.close()
    assert killed
    assert told == {"done": 10}
    assert sorted(row["id"] for row in rows(tmp_path / "out")) == sorted(job.name for job in jobs)


def test_a_killed_command_goes_on_where_it_was(written, tmp_path):
    path, out = written(*(asked(seed, steps=20) for seed in range(8))), tmp_path / "out"
    command = [sys.executable, "-m", "segue", "batch", str(path), "-o", str(out), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        next(line for line in process.stdout if '"result"' in line)
        (worker, *_) = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGKILL)
    psutil.wait_procs([worker], timeout=10)
    assert not worker.is_running(), "workers end with the command"
    done = len(rows(out))
    assert 1 <= done < 8
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert json.loads(told[-1]) == {"event": "batch", "path": str(out), "done": 8 - done, "failed": 0, "before": done}
    assert len(rows(out)) == len(pixels(out)) == 8


def test_a_job_that_fails_is_told_with_the_others_done(written, opened, tmp_path):
    jobs = read_jobs(written(asked(1), asked(2)), opened.manifest, opened.digest)
    broken = [type(jobs[0])("broken", {"prompt": "x", "steps": 0}, "0" * 64), *jobs]
    workers = LocalWorkers(BUNDLE, opened.digest, 1, 1)
    told = run_batch(broken, Ledger(tmp_path / "out"), workers, lambda row: None)
    workers.close()
    assert told == {"done": 2, "failed": 1}
    assert rows(tmp_path / "out")[0]["error"].startswith("UsageError: steps must be a whole number")


class Failing:
    """A worker whose first calls fail."""

    def __init__(self, *errors):
        self.errors = list(errors)

    def idle(self):
        return True

    def submit(self, job):
        future = Future()
        if self.errors:
            future.set_exception(self.errors.pop(0))
        else:
            future.set_result(Made(b"bytes", None, ".png", 0.0, "here"))
        return future

    def lost(self, error):
        return False

    def close(self):
        pass


class OneByOne(Failing):
    """A worker that takes a job as soon as the one before is in `done`."""

    def __init__(self, done):
        super().__init__()
        self.done, self.begun = done, 0

    def idle(self):
        return self.begun == len(self.done)

    def submit(self, job):
        self.begun += 1
        return super().submit(job)


@pytest.mark.parametrize(
    ("errors", "state", "attempts"),
    [
        ([SegueError("no memory left on this node")], "done", 2),
        ([SegueError("it is broken")] * 3, "failed", 3),
        ([UsageError("nobody could do it")], "failed", 1),
    ],
)
def test_a_job_that_fails_is_tried_again_but_for_what_no_worker_could_do(
    written, opened, tmp_path, errors, state, attempts
):
    jobs = read_jobs(written(asked(1)), opened.manifest, opened.digest)
    told = run_batch(jobs, Ledger(tmp_path / "out"), Failing(*errors), lambda row: None)
    assert told == {state: 1}
    assert rows(tmp_path / "out")[-1]["attempts"] == attempts


def test_a_worker_with_another_bundle_refuses_it(written, opened, tmp_path):
    jobs = read_jobs(written(asked(1)), opened.manifest, opened.digest)
    workers = LocalWorkers("emoji-teacher", opened.digest, 1, 1)
    with pytest.raises(BundleError, match="on this node is another bundle"):
        run_batch(jobs, Ledger(tmp_path / "out"), workers, lambda row: None)
    workers.close()


class TestRay:
    @pytest.fixture(scope="class")
    def cluster(self):
        pytest.importorskip("ray")
        from ray.cluster_utils import Cluster

        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        yield made, made.add_node(num_cpus=1)
        made.shutdown()

    def test_what_keeps_every_node_from_working_is_raised(self, cluster, written, opened, tmp_path):
        made, _ = cluster
        jobs = read_jobs(written(asked(1)), opened.manifest, opened.digest)
        workers = RayWorkers(made.address, "emoji-teacher", opened.digest)
        with pytest.raises(BundleError, match="on this node is another bundle"):
            run_batch(jobs, Ledger(tmp_path / "out"), workers, lambda row: None)
        workers.close()

    @pytest.mark.slow
    def test_a_cluster_gives_the_same_pictures_also_when_a_node_dies_in_the_middle(
        self, cluster, written, opened, tmp_path
    ):
        made, node = cluster
        jobs = read_jobs(written(*(asked(seed, steps=4) for seed in range(12))), opened.manifest, opened.digest)
        local = LocalWorkers(BUNDLE, opened.digest, 1, 1)
        run_batch(jobs, Ledger(tmp_path / "local"), local, lambda row: None)
        local.close()

        workers, dead = RayWorkers(made.address, BUNDLE, opened.digest), []
        workers._fault = BundleError(
            "another bundle"
        )  # what a third node leaves that cannot work, and no reason to stop

        def kill(row):
            if not dead and len({one["worker"] for one in rows(tmp_path / "ray")}) == 2:
                dead.append(node)
                made.remove_node(node, allow_graceful=False)

        told = run_batch(jobs, Ledger(tmp_path / "ray"), workers, kill)
        workers.close()
        assert dead, "both nodes did jobs before one died"
        assert told == {"done": 12}
        assert sorted(row["id"] for row in rows(tmp_path / "ray")) == sorted(job.name for job in jobs)
        assert pixels(tmp_path / "ray") == pixels(tmp_path / "local")


def test_two_jobs_with_the_same_arguments_are_both_kept(batch):
    batch(asked(1), asked(1, id="again"))
    told, out = batch(asked(1), asked(1, id="again"))
    assert "2 done before" in told.output
    assert len(rows(out)) == 2


def test_an_output_directory_is_one_batchs_at_a_time(tmp_path):
    with Ledger(tmp_path), pytest.raises(UsageError, match="another batch uses"):
        Ledger(tmp_path)
    Ledger(tmp_path).close()


def test_names_that_are_one_file_on_some_disks_are_refused(written, opened):
    with pytest.raises(UsageError, match="another job has the id 'Job-1'"):
        read_jobs(written(asked(1), asked(1, id="Job-1")), opened.manifest, opened.digest)
    with pytest.raises(UsageError, match="id must be a file name"):
        read_jobs(written(asked(1, id="nul")), opened.manifest, opened.digest)


def test_an_image_that_changes_while_the_batch_runs_is_refused(video_bundle, written, tmp_path):
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "a.png")
    videos = read(video_bundle)
    (job,) = read_jobs(written({"image": "a.png", "frames": 5}), videos.manifest, videos.digest)
    assert packed(job).arguments["image"] == (tmp_path / "a.png").read_bytes()
    Image.fromarray(np.full((40, 40, 3), 9, np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(UsageError, match="was changed while the batch ran"):
        packed(job)


def test_a_video_is_made_of_a_job_and_says_so(video_bundle, written, tmp_path):
    from segue.runtime.media.provenance import read_file

    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "a.png")
    command = ["batch", str(written({"id": "film", "image": "a.png", "frames": 5, "prompt": "dog"}))]
    told = CliRunner().invoke(cli, [*command, "-o", str(tmp_path / "out"), "--bundle", str(video_bundle)])
    assert told.exit_code == 0, told.output
    assert read_file(tmp_path / "out/film.mp4")["metadata"]["prompt"] == "dog"
