from pathlib import Path

import pytest
from pydantic import ValidationError

from retouch.settings import InvalidSettings, Settings, load_settings, require_local_store
from retouch.settings.loras import LoraSetting
from retouch.settings.s3_endpoint import S3Endpoint

S3 = {
    "S3_ENDPOINT": "s3.us-east-005.backblazeb2.com",
    "S3_ACCESS_KEY": "key-id",
    "S3_SECRET_KEY": "s3cr3t-key",
    "S3_BUCKET": "pictures",
}
KEY = "one-key-of-callers"


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither variables of this machine nor a `.env` are read."""
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


class Environment:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def load(self, **variables: str) -> Settings:
        for name, value in variables.items():
            self._monkeypatch.setenv(name, value)
        return load_settings()

    def refusal(self, **variables: str) -> str:
        """The line that a start with these variables ends in."""
        with pytest.raises(InvalidSettings) as caught:
            self.load(**variables)
        line = str(caught.value)
        assert "\n" not in line
        return line


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Environment:
    return Environment(monkeypatch)


def test_the_defaults_of_the_project_hold(environment: Environment) -> None:
    settings = environment.load(**S3 | {"S3_ENDPOINT": "s3.example.com"})
    assert settings.s3_server.region == "us-west-000"
    assert settings.s3_secure is True
    assert settings.s3_object_prefix == "qwen-image-edit/"
    assert settings.presign_expiry == 86400
    assert settings.max_image_bytes == 26214400
    assert settings.timeout_seconds == 120
    assert settings.log_level == "INFO"
    assert settings.hf_token.get_secret_value() == ""


def test_the_other_defaults_hold_too(environment: Environment) -> None:
    settings = environment.load()
    names = ("s3_endpoint", "s3_bucket", "s3_region", "model_id", "model_revision", "public_url")
    assert {getattr(settings, name) for name in names} == {""}
    assert settings.dtype == "float16"
    assert settings.max_image_pixels == 52_000_000
    assert settings.source_timeout_seconds == 20
    assert settings.source_ttl_seconds == 3600
    assert settings.allowed_source_hosts == ()
    assert settings.job_timeout_seconds == 600
    assert settings.edit_grace_seconds == 15
    assert settings.local_store_max_gib == 10
    assert settings.link_disposition == "inline"
    assert settings.max_queue == 32
    assert settings.api_keys == ()
    assert settings.local_store_dir == Path(".local-store")
    assert settings.link_secret.get_secret_value() == ""
    assert settings.max_body_bytes == 2 * 26214400 * 4 // 3 + 65536


def test_every_setting_has_a_description() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_without_s3_settings_the_local_store_is_used(environment: Environment) -> None:
    assert not environment.load().uses_s3
    assert environment.load(**S3).uses_s3


@pytest.mark.parametrize("name", S3)
def test_a_missing_s3_setting_is_named_and_only_that(environment: Environment, name: str) -> None:
    line = environment.refusal(**{key: value for key, value in S3.items() if key != name})
    assert [key for key in S3 if f"{key} missing" in line or f"{key}," in line] == [name]


def test_one_s3_setting_alone_names_the_other_three(environment: Environment) -> None:
    line = environment.refusal(S3_BUCKET="b")
    assert "S3_ENDPOINT, S3_ACCESS_KEY, S3_SECRET_KEY missing" in line


def test_empty_variables_are_unset(environment: Environment) -> None:
    blank = environment.load(**{name.upper(): "" for name in Settings.model_fields})
    assert blank == environment.load()
    assert blank.presign_expiry == 86400


def test_a_dotenv_file_is_read_and_the_environment_wins(environment: Environment) -> None:
    Path(".env").write_text("MAX_QUEUE=3\nLOG_LEVEL=\nPRESIGN_EXPIRY=60\nNOT_OURS=1\n")
    settings = environment.load(PRESIGN_EXPIRY="90")
    assert (settings.max_queue, settings.log_level, settings.presign_expiry) == (3, "INFO", 90)


def test_a_wrong_line_in_the_dotenv_file_is_named_too(environment: Environment) -> None:
    Path(".env").write_text("MAX_QUEUE=many\n")
    assert "MAX_QUEUE: " in environment.refusal()


@pytest.mark.parametrize(
    ("endpoint", "region", "effective"),
    [
        ("s3.us-east-005.backblazeb2.com", "", "us-east-005"),
        ("https://s3.eu-central-003.backblazeb2.com", "", "eu-central-003"),
        ("https://s3.eu-central-003.backblazeb2.com/", "", "eu-central-003"),
        ("s3.eu-central-003.backblazeb2.com:443", "", "eu-central-003"),
        ("S3.EU-central-003.BackblazeB2.com", "", "eu-central-003"),
        ("s3.us-east-005.backblazeb2.com", "us-east-005", "us-east-005"),
        ("minio.example:9000", "", "us-west-000"),
        ("minio.example:9000", "eu-1", "eu-1"),
        ("s3.us-east-005.backblazeb2.com.example", "", "us-west-000"),
        ("pictures.s3.us-east-005.backblazeb2.com", "", "us-east-005"),
        ("s3.eu-central-1.amazonaws.com", "", "eu-central-1"),
        ("s3-eu-west-1.amazonaws.com", "", "eu-west-1"),
        ("s3.dualstack.eu-west-1.amazonaws.com", "", "eu-west-1"),
        ("https://pictures.s3.eu-west-1.amazonaws.com", "", "eu-west-1"),
        ("s3.amazonaws.com", "", "us-east-1"),
        ("0123456789abcdef0123456789abcdef.r2.cloudflarestorage.com", "", "auto"),
        ("pictures.nyc3.digitaloceanspaces.com", "", "nyc3"),
        ("s3.fr-par.scw.cloud", "", "fr-par"),
        ("https://pictures.s3.gra.io.cloud.ovh.net", "", "gra"),
        ("s3.eu-central-1.wasabisys.com", "", "eu-central-1"),
        ("s3.wasabisys.com", "", "us-east-1"),
    ],
)
def test_the_region_is_the_setting_or_the_endpoint_s(
    environment: Environment, endpoint: str, region: str, effective: str
) -> None:
    settings = environment.load(**S3 | {"S3_ENDPOINT": endpoint, "S3_REGION": region})
    assert settings.s3_server.region == effective


def test_a_region_that_contradicts_the_endpoint_is_refused(environment: Environment) -> None:
    line = environment.refusal(**S3, S3_REGION="us-west-004")
    assert "S3_REGION" in line
    assert "us-east-005" in line


@pytest.mark.parametrize(
    ("endpoint", "secure", "host"),
    [
        ("s3.example", "true", "s3.example"),
        ("s3.example:9000", "false", "s3.example:9000"),
        ("https://s3.example", "true", "s3.example"),
        ("http://s3.example:9000/", "false", "s3.example:9000"),
        ("[::1]:9000", "false", "[::1]:9000"),
    ],
)
def test_an_endpoint_comes_with_or_without_its_scheme(
    environment: Environment, endpoint: str, secure: str, host: str
) -> None:
    settings = environment.load(**S3 | {"S3_ENDPOINT": endpoint, "S3_SECURE": secure})
    assert settings.s3_server.host == host


@pytest.mark.parametrize(
    ("endpoint", "host", "secure"),
    [
        ("http://minio:9000", "minio:9000", False),
        ("https://minio:9000/", "minio:9000", True),
        ("http://minio:9000/pictures", "minio:9000", False),
        ("minio:9000/pictures/", "minio:9000", True),
        ("https://pictures.s3.us-west-004.backblazeb2.com", "s3.us-west-004.backblazeb2.com", True),
        ("MinIO.Example", "minio.example", True),
    ],
)
def test_the_scheme_decides_where_s3_secure_is_unset(
    environment: Environment, endpoint: str, host: str, secure: bool
) -> None:
    server = environment.load(**S3 | {"S3_ENDPOINT": endpoint}).s3_server
    assert (server.host, server.secure) == (host, secure)


@pytest.mark.parametrize(
    ("endpoint", "advice"),
    [
        ("https://other.s3.us-west-004.backblazeb2.com", "write s3.us-west-004.backblazeb2.com"),
        ("https://minio:9000/other/path", "write minio:9000"),
        ("https://key:secret@minio:9000", "set S3_ACCESS_KEY and S3_SECRET_KEY"),
        ("s3://pictures", "must be a host, such as"),
    ],
)
def test_a_refused_endpoint_says_what_to_write(
    environment: Environment, endpoint: str, advice: str
) -> None:
    assert advice in environment.refusal(**S3 | {"S3_ENDPOINT": endpoint})


@pytest.mark.parametrize(
    ("public", "host", "secure"),
    [("", "minio:9000", False), ("https://files.example", "files.example", True)],
)
def test_links_can_name_another_endpoint_than_requests(
    environment: Environment, public: str, host: str, secure: bool
) -> None:
    inside = {"S3_ENDPOINT": "http://minio:9000", "S3_PUBLIC_ENDPOINT": public}
    settings = environment.load(**S3 | inside)
    assert settings.s3_server == S3Endpoint("minio:9000", secure=False, region="us-west-000")
    assert settings.s3_public_server == S3Endpoint(host, secure=secure, region="us-west-000")


@pytest.mark.parametrize(
    ("endpoint", "secure"), [("http://s3.example", "true"), ("https://s3.example", "false")]
)
def test_a_scheme_that_contradicts_s3_secure_is_refused(
    environment: Environment, endpoint: str, secure: str
) -> None:
    line = environment.refusal(**S3 | {"S3_ENDPOINT": endpoint, "S3_SECURE": secure})
    assert "S3_ENDPOINT" in line
    assert "S3_SECURE" in line


@pytest.mark.parametrize(
    "endpoint",
    [
        "ftp://s3.example",
        "s3://pictures",
        "https://",
        "s3.example/bucket",
        "other.s3.us-west-004.backblazeb2.com",
        "https://s3.example/?a=b",
        "https://user:pw@s3.example",
        "s3.example:port",
        "s3.example:99999",
        "s3 .example",
        "https://[::1",
    ],
)
def test_an_invalid_endpoint_is_refused_by_name(environment: Environment, endpoint: str) -> None:
    assert "S3_ENDPOINT" in environment.refusal(**S3 | {"S3_ENDPOINT": endpoint})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("PRESIGN_EXPIRY", ["0", "604801", "-1", "1.5", "soon"]),
        ("MAX_IMAGE_BYTES", ["1023", "1073741825"]),
        ("TIMEOUT_SECONDS", ["0", "-1", "3601", "nan", "inf"]),
        ("SOURCE_TIMEOUT_SECONDS", ["0", "nan"]),
        ("SOURCE_TTL_SECONDS", ["59", "604801"]),
        ("JOB_TIMEOUT_SECONDS", ["0", "86401"]),
        ("MAX_IMAGE_PIXELS", ["4095", "268435457"]),
        ("DECODER_CHILDREN", ["0", "65"]),
        ("DECODER_CPU_SECONDS", ["0", "1.5"]),
        ("DECODER_MEMORY_MIB", ["255", "65537"]),
        ("MAX_QUEUE", ["-1", "10001"]),
        ("S3_SECURE", ["perhaps"]),
        ("LOG_LEVEL", ["LOUD"]),
        ("DTYPE", ["int8"]),
        ("S3_OBJECT_PREFIX", ["Upper/", "a b/", "../", "a/../b/", "a//b", ".a/", "ä/"]),
        (
            "ALLOWED_SOURCE_HOSTS",
            ["host", "host:port", "http://h:80", "u@h:80", "h:80,bad", "h:70000", ",", "*.h:80"],
        ),
        (
            "ALLOWED_WEBHOOK_HOSTS",
            ["bücher.example:80", "h.:80", "h:080", "h:0", "[::g]:80", "[1]:80"],
        ),
        ("API_KEYS", ["clé-of-some-caller", ",", " ", "k" * 15, f"{KEY},short", f'["{KEY}"]']),
        ("S3_BUCKET", ["a b", "bad!", "../x"]),
        ("LOCAL_STORE_DIR", [__file__]),
        (
            "PUBLIC_URL",
            [
                "example.com",
                "ftp://example.com",
                "https://",
                "https://e.com/?q",
                "https://e.com/#f",
                "https://e .com",
                "h://[",
            ],
        ),
        ("ENGINE_URL", ["vllm:8091", "http://u:p@vllm/", "http://vllm/?key=1"]),
        ("ENGINE_KEY", ["clé", "a\nb"]),
        ("ENGINE_MODEL", ["a\nb", "x" * 201]),
    ],
)
def test_a_wrong_value_is_refused_in_one_line_that_names_the_variable(
    environment: Environment, name: str, values: list[str]
) -> None:
    for value in values:
        assert f"{name}: " in environment.refusal(**{name: value}), value


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("PRESIGN_EXPIRY", ["1", "604800"]),
        ("MAX_IMAGE_BYTES", ["1024"]),
        ("MAX_QUEUE", ["0"]),
        ("SOURCE_TTL_SECONDS", ["60", "604800"]),
        ("TIMEOUT_SECONDS", ["0.5", "3600"]),
    ],
)
def test_the_ends_of_a_range_are_within_it(
    environment: Environment, name: str, values: list[str]
) -> None:
    for value in values:
        assert str(getattr(environment.load(**{name: value}), name.lower())).startswith(value)


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("S3_SECURE", " false ", False),
        ("COMPILE", " true", True),
        ("DTYPE", " bfloat16 ", "bfloat16"),
        ("LOG_LEVEL", " info ", "INFO"),
        ("MAX_QUEUE", " 5 ", 5),
        ("PUBLIC_URL", " https://e.com/x/ ", "https://e.com/x"),
        ("MODEL_ID", " a/b ", "a/b"),
        ("LOCAL_STORE_DIR", "~/store", Path.home() / "store"),
    ],
)
def test_spaces_around_a_value_do_not_matter(
    environment: Environment, name: str, value: str, read: object
) -> None:
    assert getattr(environment.load(**{name: value}), name.lower()) == read


def test_a_dotenv_file_that_is_not_text_ends_the_start_in_one_line(
    environment: Environment,
) -> None:
    Path(".env").write_bytes(b"MAX_QUEUE=\xff")
    assert ".env cannot be read" in environment.refusal()


def test_every_wrong_setting_is_named_at_once(environment: Environment) -> None:
    line = environment.refusal(MAX_QUEUE="x", DTYPE="y", LOG_LEVEL="z", S3_BUCKET="pictures")
    assert all(f"{name}: " in line for name in ("MAX_QUEUE", "DTYPE", "LOG_LEVEL"))
    assert "S3_ENDPOINT, S3_ACCESS_KEY, S3_SECRET_KEY missing" in line


def test_quotes_around_values_are_dropped_with_a_warning(environment: Environment) -> None:
    quoted = {name: f'"{value}"' for name, value in S3.items()}
    settings = environment.load(
        **quoted, API_KEYS=f"'{KEY},{KEY}2'", MAX_QUEUE='""', DTYPE="float32"
    )
    plain = environment.load(**S3, API_KEYS=f"{KEY},{KEY}2", MAX_QUEUE="")
    assert settings == plain
    environment.load(**quoted, DTYPE="float32")
    assert settings.warnings == [
        f"{name} is set in quotes: they are dropped" for name in sorted(S3)
    ]


def test_each_key_of_a_list_may_have_quotes_of_its_own(environment: Environment) -> None:
    settings = environment.load(API_KEYS=f"\"{KEY}\", '{KEY}2',{KEY}3")
    assert settings.api_keys == (KEY, f"{KEY}2", f"{KEY}3")


def test_a_name_close_to_a_setting_is_warned_about(environment: Environment) -> None:
    Path(".env").write_text("MODEL_IDS=x\n")
    warnings = environment.load(
        MAXQUEUE="4", API_KEY="secret", S3_ENDPOINT_URL="x", AWS_REGION="x", HOME="/"
    ).warnings
    assert warnings == [
        "API_KEY is not a setting: is API_KEYS meant?",
        "MAXQUEUE is not a setting: is MAX_QUEUE meant?",
        "MODEL_IDS is not a setting: is MODEL_ID meant?",
        "S3_ENDPOINT_URL is not a setting: is S3_ENDPOINT meant?",
    ]


def test_a_secret_is_not_in_a_refusal_nor_in_the_repr(environment: Environment) -> None:
    line = environment.refusal(**S3 | {"S3_ENDPOINT": "ftp://x"}, API_KEYS="k3y-öne-of-the-caller")
    planted = {
        "HF_TOKEN": "hf_t0ken",
        "LINK_SECRET": "l1nk-of-local-files",
        "API_KEYS": "k3y-one-of-the-caller",
    }
    settings = environment.load(**S3, **planted)
    for secret in ("s3cr3t-key", "hf_t0ken", "l1nk", "k3y-one", "k3y-öne"):
        assert secret not in line
        assert secret not in repr(settings)


def test_lists_are_split_at_commas_and_trimmed(environment: Environment) -> None:
    settings = environment.load(
        API_KEYS=f" {KEY} , {KEY}2,,", ALLOWED_SOURCE_HOSTS="Files.Local:8080,[0:0::1]:80"
    )
    assert settings.api_keys == (KEY, KEY + "2")
    assert settings.allowed_source_hosts == ("files.local:8080", "[::1]:80")
    assert Settings(api_keys=(KEY,)).api_keys == (KEY,)


@pytest.mark.parametrize(
    ("given", "kept"),
    [("a", "a/"), ("/a/b/", "a/b/"), ("/", ""), ("a.b/c_d-e", "a.b/c_d-e/")],
)
def test_the_prefix_is_normalised(environment: Environment, given: str, kept: str) -> None:
    assert environment.load(S3_OBJECT_PREFIX=given).s3_object_prefix == kept


def test_the_log_level_is_taken_in_any_case(environment: Environment) -> None:
    assert environment.load(LOG_LEVEL="debug").log_level == "DEBUG"
    assert environment.load(LOG_LEVEL="warn").log_level == "WARNING"  # as Python's logging does
    with pytest.raises(ValidationError):
        Settings(log_level=10)


@pytest.mark.parametrize("text", ["a/b", "a/b/", "https://huggingface.co/a/b"])
def test_a_model_is_taken_by_the_address_of_its_page(environment: Environment, text: str) -> None:
    assert environment.load(MODEL_ID=text).model_id == "a/b"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DTYPE", "bfloat16"),
        ("QUANTIZATION", "nf4"),
        ("PARALLEL", "ulysses"),
        ("GPUS", "all"),
        ("LINK_DISPOSITION", "attachment"),
    ],
)
def test_a_choice_is_taken_in_any_case(environment: Environment, name: str, value: str) -> None:
    assert getattr(environment.load(**{name: value.title()}), name.lower()) == value


def test_the_public_url_loses_its_last_slash(environment: Environment) -> None:
    assert environment.load(PUBLIC_URL="https://e.com/a/").public_url == "https://e.com/a"


def test_the_body_limit_holds_the_images_of_a_request_as_base64(environment: Environment) -> None:
    settings = environment.load(MAX_IMAGE_BYTES="3000")
    assert settings.max_body_bytes == 8000 + 65536


def test_a_local_store_that_cannot_be_written_is_refused_where_it_is_used(
    environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = environment.load(LOCAL_STORE_DIR=str(tmp_path / "new" / "store"))
    require_local_store(settings)
    monkeypatch.setattr("os.access", lambda path, _mode: path != tmp_path)
    with pytest.raises(InvalidSettings, match=f"LOCAL_STORE_DIR: {tmp_path} is not writable"):
        require_local_store(settings)
    require_local_store(environment.load(LOCAL_STORE_DIR=str(tmp_path), **S3))


def test_every_secret_is_listed_to_be_kept_out_of_the_logs(environment: Environment) -> None:
    planted = {
        "HF_TOKEN": "hf-token",
        "LINK_SECRET": "link-secret-of-files",
        "API_KEYS": f"{KEY},{KEY}2",
    }
    planted["ENGINE_KEY"] = "engine-key"
    settings = environment.load(**S3, **planted)
    assert set(settings.secrets) == {
        "key-id",
        "s3cr3t-key",
        "hf-token",
        "link-secret-of-files",
        "engine-key",
        KEY,
        KEY + "2",
    }


def test_prefetch_jobs_is_accepted_and_warned_about(environment: Environment) -> None:
    assert environment.load().warnings == []
    assert environment.load(PREFETCH_JOBS="2").warnings == ["PREFETCH_JOBS is ignored: unset it"]


def test_settings_cannot_be_changed(environment: Environment) -> None:
    with pytest.raises(ValidationError):
        environment.load().max_queue = 3  # type: ignore[misc]


def test_an_uncaught_refusal_ends_the_process_with_its_line() -> None:
    assert issubclass(InvalidSettings, SystemExit)


@pytest.mark.parametrize("name", ["metrics_key", "link_secret"])
def test_other_secrets_are_held_to_the_length_of_api_keys(name: str) -> None:
    assert getattr(Settings(_env_file=None, **{name: "m" * 16}), name).get_secret_value()
    with pytest.raises(ValidationError, match="at least 16 characters"):
        Settings(_env_file=None, **{name: "m" * 15})


@pytest.mark.parametrize(
    ("variables", "fault"),
    [
        ({"TRANSFORMER_FILE": "a.gguf"}, "TRANSFORMER_FILE: needs MODEL_ID"),
        ({"TEXT_ENCODER_FILE": "a.safetensors"}, "TEXT_ENCODER_FILE: needs MODEL_ID"),
        ({"MODEL_ID": "a/b", "MODEL_FAMILY": "2511"}, "MODEL_FAMILY: is that of TRANSFORMER_FILE"),
        ({"MODEL_ID": "a/b", "TRANSFORMER_FILE": "c", "MODEL_FAMILY": "2.1"}, "MODEL_FAMILY"),
    ],
)
def test_a_file_of_weights_needs_the_checkpoint_around_it(
    environment: Environment, variables: dict[str, str], fault: str
) -> None:
    assert fault in environment.refusal(**variables)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("a=/b.safetensors", LoraSetting("a", "/b.safetensors")),
        ("!a=o/r/d/f.safetensors@-0.5", LoraSetting("a", "o/r/d/f.safetensors", "", -0.5, True)),
        (f"a=b#{'AB' * 32}@2", LoraSetting("a", "b", "ab" * 32, 2.0)),
        (
            "a=https://huggingface.co/o/r/blob/main/f",
            LoraSetting("a", "https://huggingface.co/o/r/resolve/main/f"),
        ),
        ("a=https://h/x%2Cy@z/f#" + "0" * 64, LoraSetting("a", "https://h/x,y@z/f", "0" * 64)),
    ],
)
def test_an_entry_of_loras_is_parsed(
    entry: str, expected: LoraSetting, environment: Environment
) -> None:
    assert environment.load(LORAS=f"other=x,{entry}").loras[1] == expected


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ("a.safetensors", "must begin with name="),
        ("A=b", "must begin with name="),
        ("a=", "must name a file"),
        ("a=http://h/f", "must name a file"),
        ("a=b#12", "64 hex digits"),
        ("a=b@x", "a number from -4 to 4"),
        ("a=b@nan", "a number from -4 to 4"),
        ("a=b@4.5", "a number from -4 to 4"),
        ("a=b,a=c", "names a twice"),
    ],
)
def test_a_wrong_entry_of_loras_is_refused(
    entry: str, fault: str, environment: Environment
) -> None:
    line = environment.refusal(LORAS=entry)
    assert "LORAS" in line
    assert fault in line
