"""A stand-in for Telegram's Bot API server, on loopback: what it takes, what it refuses, how it fails.

Updates, messages and errors are shaped as https://core.telegram.org/bots/api documents them. `Person` is somebody with
a Telegram client: says, sends, presses, and waits for what the bot answers.
"""

import asyncio
import io
import itertools
import json
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from PIL import Image

TOKEN = "123456789:AAEhBOweik6ad9r_QXMENQjcrGbqCr4K-bc"
BOT = {"id": 123456789, "is_bot": True, "first_name": "Pyramid", "username": "pyramid_style_bot"}
MIB = 2**20
SPOKEN = {
    "sendMessage",
    "sendPhoto",
    "sendDocument",
    "sendAnimation",
    "editMessageText",
    "editMessageCaption",
    "editMessageMedia",
    "editMessageReplyMarkup",
}
"""Methods that count as speaking to a chat."""


class Refused(Exception):  # noqa: N818
    """An answer that isn't ok."""

    def __init__(self, status: int, description: str, **parameters: int) -> None:
        super().__init__(description)
        self.status = status
        self.description = description
        self.parameters = parameters


@dataclass
class Fault:
    """What goes wrong with a call.

    Attributes:
        refusal: An answer that isn't ok.
        before: The connection breaks before the call is acted on.
        after: It breaks after that, before the answer.
        seconds: The answer comes so late.
        chat: Only for calls about this chat.
    """

    refusal: Refused | None = None
    before: bool = False
    after: bool = False
    seconds: float = 0.0
    chat: int | None = None


@dataclass
class Call:
    """A call that was made."""

    method: str
    params: dict[str, Any]
    time: float
    status: int = 200

    @property
    def chat(self) -> int | None:
        value = self.params.get("chat_id")
        return None if value is None else int(value)


@dataclass
class Limits:
    """How often chats may be spoken to; one call too many is answered with 429."""

    chat_seconds: float = 1.0
    group_messages: int = 20
    group_seconds: float = 60.0
    in_all: int = 30
    slack: float = 0.05


@dataclass
class _Chat:
    spoken: deque[float] = field(default_factory=lambda: deque(maxlen=1000))
    blocked: bool = False
    topics: set[int] = field(default_factory=set)
    moved_to: int | None = None
    messages: dict[int, dict[str, Any]] = field(default_factory=dict)


class BotApi:
    """The server. Open it with `async with`."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits
        self.calls: list[Call] = []
        self.faults: dict[str, deque[Fault]] = defaultdict(deque)
        self.away = False
        """Every connection breaks."""
        self.commands: dict[str, list[dict[str, str]]] = {}
        self.webhook: dict[str, Any] = {}
        self.answers: dict[str, dict[str, Any]] = {}
        self.violations: Counter[str] = Counter()
        self.files: dict[str, bytes] = {}
        self._sizes: dict[str, int] = {}
        self._chats: dict[int, _Chat] = defaultdict(_Chat)
        self._spoken: deque[float] = deque(maxlen=10_000)
        self._updates: list[dict[str, Any]] = []
        self._ids = itertools.count(1000)
        self._message_ids = itertools.count(1)
        self._poll = 0
        self._tasks: set[asyncio.Future[None]] = set()
        self._news = asyncio.Condition()
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def __aenter__(self) -> "BotApi":
        app = web.Application(client_max_size=200 * MIB)
        app.router.add_route("*", "/bot{token}/{method}", self._call)
        app.router.add_get("/file/bot{token}/{path:.+}", self._file)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    # What tests see and do

    def said(self, chat: int) -> list[dict[str, Any]]:
        """The bot's messages that are in a chat, as they are now."""
        return [message for message in self._chats[chat].messages.values() if message["from"] == BOT]

    def made(self, *methods: str, chat: int | None = None) -> list[Call]:
        """The calls of these methods that were answered with ok."""
        return [
            call
            for call in self.calls
            if call.method in methods and call.status == 200 and (chat is None or call.chat == chat)
        ]

    async def until(self, condition: Callable[[], Any], within: float = 30.0) -> Any:
        """Waits until something is so, asked after every call; what it then says."""
        try:
            async with asyncio.timeout(within), self._news:
                await self._news.wait_for(condition)
        except TimeoutError:
            lines = [f"{call.status} {call.method} {str(call.params)[:200]}" for call in self.calls[-30:]]
            raise AssertionError("it didn't happen; the latest calls:\n" + "\n".join(lines)) from None
        return condition()

    def block(self, chat: int, blocked: bool = True) -> None:
        self._chats[chat].blocked = blocked

    def move(self, chat: int, to: int) -> None:
        self._chats[chat].moved_to = to

    def delete(self, chat: int, message: int) -> None:
        del self._chats[chat].messages[message]

    def add_topic(self, chat: int, topic: int) -> None:
        self._chats[chat].topics.add(topic)

    def delete_topic(self, chat: int, topic: int) -> None:
        self._chats[chat].topics.remove(topic)

    def add_file(self, data: bytes, size: int | None = None) -> str:
        file_id = f"AgACAgIAAxkBAAI{len(self.files):06d}"
        self.files[file_id] = data
        self._sizes[file_id] = len(data) if size is None else size
        return file_id

    def message(self, chat: dict[str, Any], sender: dict[str, Any], **content: Any) -> dict[str, Any]:
        """A message of somebody, as it is in the chat from now on."""
        number = next(self._message_ids)
        message = {"message_id": number, "from": sender, "chat": chat, "date": int(time.time()), **content}
        self._chats[chat["id"]].messages[number] = message
        return message

    def push(self, **content: Any) -> dict[str, Any]:
        """An update for the bot."""
        update = {"update_id": next(self._ids), **content}
        self._updates.append(update)
        self._tell_soon()
        return update

    def repeat(self, update: dict[str, Any]) -> None:
        """The same update again, as when its confirmation was lost."""
        self._updates.append(update)
        self._tell_soon()

    @property
    def unconfirmed(self) -> int:
        return len(self._updates)

    def _tell_soon(self) -> None:
        task = asyncio.ensure_future(self._tell())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()

    # HTTP

    async def _file(self, request: web.Request) -> web.StreamResponse:
        file_id = request.match_info["path"].partition("/")[2]
        if self.away:
            return self._break(request)
        if request.match_info["token"] != TOKEN or file_id not in self.files:
            return web.json_response({"ok": False, "error_code": 404, "description": "Not Found"}, status=404)
        return web.Response(body=self.files[file_id])

    async def _call(self, request: web.Request) -> web.StreamResponse:
        method, arrived = request.match_info["method"], time.monotonic()
        if self.away:
            return self._break(request)
        if request.match_info["token"] != TOKEN:
            return _refusal(Refused(401, "Unauthorized"))
        params = await _params(request)
        call = Call(method, {key: value for key, value in params.items() if isinstance(value, str)}, arrived)
        fault = self._next_fault(call)
        if fault and fault.before:
            return self._break(request)
        self.calls.append(call)
        try:
            if fault and fault.refusal:
                raise fault.refusal
            if method in SPOKEN:
                self._check_pace(int(params["chat_id"]), arrived)
            handle = getattr(self, "_" + "".join("_" + c.lower() if c.isupper() else c for c in method), None)
            if handle is None:
                raise Refused(404, "Not Found: method not found")
            result = await handle(params)
            response = web.json_response({"ok": True, "result": result})
        except Refused as refusal:
            call.status = refusal.status
            response = _refusal(refusal)
        await self._tell()
        if fault and fault.seconds:
            await asyncio.sleep(fault.seconds)
        return self._break(request) if fault and fault.after else response

    def _next_fault(self, call: Call) -> Fault | None:
        waiting = self.faults[call.method]
        if waiting and waiting[0].chat in (None, call.chat):
            return waiting.popleft()
        return None

    def _break(self, request: web.Request) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.abort()
        return web.Response()

    # Limits

    def _check_pace(self, chat_id: int, now: float) -> None:
        if self.limits is None:
            return
        limits, chat = self.limits, self._chats[chat_id]
        recent = [moment for moment in chat.spoken if moment > now - limits.group_seconds]
        if chat.spoken and now - chat.spoken[-1] < limits.chat_seconds - limits.slack:
            self._violation("chat", 1)
        if chat_id < 0 and len(recent) >= limits.group_messages:
            self._violation("group", 5)
        if sum(moment > now - 1 for moment in self._spoken) >= limits.in_all:
            self._violation("all", 1)
        chat.spoken.append(now)
        self._spoken.append(now)

    def _violation(self, kind: str, retry_after: int) -> None:
        self.violations[kind] += 1
        raise Refused(429, f"Too Many Requests: retry after {retry_after}", retry_after=retry_after)

    # Methods

    async def _get_me(self, params: dict[str, Any]) -> Any:
        return BOT | {"can_join_groups": True, "can_read_all_group_messages": False, "supports_inline_queries": False}

    async def _get_updates(self, params: dict[str, Any]) -> Any:
        self._poll += 1
        mine = self._poll
        await self._tell()  # an older request ends
        offset = int(params.get("offset", 0))
        self._updates = [update for update in self._updates if update["update_id"] >= offset]
        try:
            async with asyncio.timeout(float(params.get("timeout", 0))), self._news:
                await self._news.wait_for(lambda: self._updates or self._poll != mine)
        except TimeoutError:
            pass
        if self._poll != mine:
            raise Refused(409, "Conflict: terminated by other getUpdates request")
        return self._updates[:100]

    async def _delete_webhook(self, params: dict[str, Any]) -> Any:
        self.webhook = {}
        return True

    async def _set_webhook(self, params: dict[str, Any]) -> Any:
        self.webhook = params
        return True

    async def _set_my_commands(self, params: dict[str, Any]) -> Any:
        key = params.get("language_code", "") or params.get("scope", "")
        self.commands[key] = json.loads(params["commands"])
        return True

    async def _send_chat_action(self, params: dict[str, Any]) -> Any:
        self._reachable(int(params["chat_id"]))
        return True

    async def _answer_callback_query(self, params: dict[str, Any]) -> Any:
        if params["callback_query_id"] not in self.answers:
            raise Refused(400, "Bad Request: query is too old and response timeout expired or query ID is invalid")
        self.answers[params["callback_query_id"]] |= params
        return True

    async def _get_file(self, params: dict[str, Any]) -> Any:
        file_id = params["file_id"]
        if file_id not in self.files:
            raise Refused(400, "Bad Request: wrong file_id or the file is temporarily unavailable")
        if self._sizes[file_id] > 20 * MIB:
            raise Refused(400, "Bad Request: file is too big")
        unique = {"file_unique_id": file_id[-8:], "file_size": self._sizes[file_id], "file_path": f"photos/{file_id}"}
        return {"file_id": file_id, **unique}

    async def _send_message(self, params: dict[str, Any]) -> Any:
        return self._post(params, text=_text(params["text"], 4096))

    async def _send_photo(self, params: dict[str, Any]) -> Any:
        return self._post(params, photo=self._photo(params["photo"]), **_captioned(params))

    async def _send_document(self, params: dict[str, Any]) -> Any:
        value = params["document"]
        if isinstance(value, str):
            if value not in self.files:
                raise Refused(400, "Bad Request: wrong file identifier/HTTP URL specified")
            file_id, name = value, "file"
        else:
            if len(value.data) > 50 * MIB:
                raise Refused(413, "Request Entity Too Large")
            file_id, name = self.add_file(value.data), value.name
        document = {
            "file_id": file_id,
            "file_unique_id": file_id[-8:],
            "file_name": name,
            "mime_type": "image/png",
            "file_size": len(self.files[file_id]),
        }
        return self._post(params, document=document, **_captioned(params))

    async def _send_animation(self, params: dict[str, Any]) -> Any:
        value = params["animation"]
        assert isinstance(value, Upload)
        if len(value.data) > 50 * MIB:
            raise Refused(413, "Request Entity Too Large")
        file_id = self.add_file(value.data)
        animation = {
            "file_id": file_id,
            "file_unique_id": file_id[-8:],
            "width": 64,
            "height": 32,
            "duration": 1,
            "file_name": value.name,
            "mime_type": "video/mp4",
        }
        return self._post(params, animation=animation, **_captioned(params))

    async def _edit_message_text(self, params: dict[str, Any]) -> Any:
        message = self._editable(params)
        if "text" not in message:
            raise Refused(400, "Bad Request: there is no text in the message to edit")
        return self._edit(message, params, text=_text(params["text"], 4096))

    async def _edit_message_caption(self, params: dict[str, Any]) -> Any:
        message = self._editable(params)
        if "text" in message:
            raise Refused(400, "Bad Request: there is no caption in the message to edit")
        return self._edit(message, params, **_captioned(params))

    async def _edit_message_media(self, params: dict[str, Any]) -> Any:
        message = self._editable(params)
        media = json.loads(params["media"])
        attached = media["media"].removeprefix("attach://")
        photo = self._photo(params[attached] if attached in params else media["media"])
        message.pop("text", None)
        return self._edit(message, params, photo=photo, **_captioned(media))

    async def _edit_message_reply_markup(self, params: dict[str, Any]) -> Any:
        return self._edit(self._editable(params), params)

    # Messages

    def _reachable(self, chat_id: int) -> _Chat:
        chat = self._chats[chat_id]
        if chat.blocked:
            raise Refused(403, "Forbidden: bot was blocked by the user")
        if chat.moved_to:
            description = "Bad Request: group chat was upgraded to a supergroup chat"
            raise Refused(400, description, migrate_to_chat_id=chat.moved_to)
        if not chat.messages:
            raise Refused(400, "Bad Request: chat not found")
        return chat

    def _post(self, params: dict[str, Any], **content: Any) -> dict[str, Any]:
        chat_id = int(params["chat_id"])
        chat = self._reachable(chat_id)
        topic = params.get("message_thread_id")
        if topic is not None:
            if int(topic) not in chat.topics:
                raise Refused(400, "Bad Request: message thread not found")
            content |= {"message_thread_id": int(topic), "is_topic_message": True}
        answer = json.loads(params.get("reply_parameters", "null"))
        if answer:
            known = answer["message_id"] in chat.messages
            if not known and not answer.get("allow_sending_without_reply"):
                raise Refused(400, "Bad Request: message to be replied not found")
            if known:
                content["reply_to_message"] = chat.messages[answer["message_id"]]
        if markup := _markup(params):
            content["reply_markup"] = markup
        where = next(iter(chat.messages.values()))["chat"]
        return self.message(where, BOT, **content)

    def _editable(self, params: dict[str, Any]) -> dict[str, Any]:
        message = self._reachable(int(params["chat_id"])).messages.get(int(params["message_id"]))
        if message is None:
            raise Refused(400, "Bad Request: message to edit not found")
        if message["from"] != BOT:
            raise Refused(400, "Bad Request: message can't be edited")
        return message

    def _edit(self, message: dict[str, Any], params: dict[str, Any], **content: Any) -> dict[str, Any]:
        new = {key: value for key, value in message.items() if key not in ("reply_markup", "edit_date")} | content
        if markup := _markup(params):
            new["reply_markup"] = markup
        if {key: value for key, value in message.items() if key != "edit_date"} == new:
            raise Refused(
                400,
                "Bad Request: message is not modified: specified new message content and reply markup are "
                "exactly the same as a current content and reply markup of the message",
            )
        message.pop("reply_markup", None)
        message.update(new, edit_date=int(time.time()))
        return message

    def _photo(self, value: "str | Upload") -> list[dict[str, Any]]:
        if isinstance(value, str):
            if value not in self.files:
                raise Refused(400, "Bad Request: wrong file identifier/HTTP URL specified")
            return self._sizes_of(value)
        if len(value.data) > 10 * MIB:
            raise Refused(400, "Bad Request: file must be non-empty and at most 10 MB")
        try:
            with Image.open(io.BytesIO(value.data)) as image:
                width, height = image.size
        except OSError:
            raise Refused(400, "Bad Request: IMAGE_PROCESS_FAILED") from None
        if width + height > 10_000 or max(width, height) > 20 * min(width, height):
            raise Refused(400, "Bad Request: PHOTO_INVALID_DIMENSIONS")
        return self._sizes_of(self.add_file(value.data))

    def _sizes_of(self, file_id: str) -> list[dict[str, Any]]:
        data = self.files[file_id]
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
        full = {"width": width, "height": height, "file_size": len(data)}
        return [{"file_id": file_id, "file_unique_id": file_id[-8:], **full}]


@dataclass
class Upload:
    """A file that came with a call."""

    name: str
    data: bytes


async def _params(request: web.Request) -> dict[str, Any]:
    params: dict[str, Any] = dict(request.query)
    for key, value in (await request.post()).items():
        if isinstance(value, web.FileField):
            params[key] = Upload(value.filename, value.file.read())
        else:
            params[key] = value
    return params


def _refusal(refusal: Refused) -> web.Response:
    body: dict[str, Any] = {"ok": False, "error_code": refusal.status, "description": refusal.description}
    if refusal.parameters:
        body["parameters"] = refusal.parameters
    return web.json_response(body, status=refusal.status)


def _text(text: str, longest: int) -> str:
    if not 0 < len(text) <= longest:
        raise Refused(400, "Bad Request: message text is empty or too long")
    return text


def _captioned(params: dict[str, Any]) -> dict[str, Any]:
    caption = params.get("caption", "")
    if len(caption) > 1024:
        raise Refused(400, "Bad Request: message caption is too long")
    return {"caption": caption}


def _markup(params: dict[str, Any]) -> Any:
    markup = json.loads(params.get("reply_markup", "null"))
    for row in (markup or {}).get("inline_keyboard", []):
        for button in row:
            if not button["text"] or not 0 < len(button["callback_data"].encode()) <= 64:
                raise Refused(400, "Bad Request: BUTTON_DATA_INVALID")
    return markup


# ── People ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Person:
    """Somebody with a Telegram client.

    Args:
        api: The server.
        user: Their id, also that of their private chat.
        language: Of their client.
        group: A group to speak in, instead.
        topic: A topic of that group.
    """

    def __init__(
        self, api: BotApi, user: int, language: str = "en", group: int | None = None, topic: int | None = None
    ) -> None:
        self.api = api
        self.user = user
        self.account = {"id": user, "is_bot": False, "first_name": f"Person {user}", "language_code": language}
        self.chat_id = user if group is None else group
        self._topic = topic
        self._albums = itertools.count(1)
        if group is None:
            self._chat: dict[str, Any] = {"id": user, "type": "private", "first_name": f"Person {user}"}
        else:
            self._chat = {"id": group, "type": "supergroup", "title": "Painters"}
            if topic is not None:
                self._chat["is_forum"] = True
                api.add_topic(group, topic)

    def says(self, text: str, reply_to: dict[str, Any] | None = None) -> dict[str, Any]:
        """Sends a text; commands and mentions are marked as a client marks them."""
        return self._sends(reply_to, text=text, entities=list(_entities(text)))

    def sends_photo(self, data: bytes, caption: str = "", reply_to: dict[str, Any] | None = None) -> dict[str, Any]:
        """Sends a picture as a photo; returns its message."""
        return self._sends(reply_to, **self._picture(data, caption))

    def sends_document(
        self,
        data: bytes,
        name: str = "picture.png",
        kind: str = "image/png",
        size: int | None = None,
        reply_to: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Sends a file."""
        return self._sends(reply_to, **self._as_document(data, name, kind, size))

    def message_with_document(self, data: bytes, size: int | None = None) -> dict[str, Any]:
        """A message with a file, to be delivered."""
        return self._message(None, **self._as_document(data, size=size))

    def sends(self, **content: Any) -> dict[str, Any]:
        """Sends anything else."""
        return self._sends(None, **content)

    def sends_album(self, *pictures: bytes, as_files: bool = False, captions: tuple[str, ...] = ()) -> list[Any]:
        """Sends pictures together; Telegram delivers them as one update each. Returns these."""
        return [self.delivers(part) for part in self.album(*pictures, as_files=as_files, captions=captions)]

    def album(self, *pictures: bytes, as_files: bool = False, captions: tuple[str, ...] = ()) -> list[dict[str, Any]]:
        """The messages of an album, to be delivered one by one."""
        group = f"{self.user}{next(self._albums):08d}"
        contents = [
            self._as_document(data) if as_files else self._picture(data, caption)
            for data, caption in itertools.zip_longest(pictures, captions, fillvalue="")
            if isinstance(data, bytes)
        ]
        return [self._message(None, media_group_id=group, **content) for content in contents]

    def delivers(self, message: dict[str, Any]) -> dict[str, Any]:
        """Lets a message reach the bot."""
        return self.api.push(message=message)

    def presses(self, message: dict[str, Any], text: str) -> dict[str, Any]:
        """Presses the button whose text begins so; returns the answer to the press, which fills in when it comes."""
        buttons = [button for row in message["reply_markup"]["inline_keyboard"] for button in row]
        data = next(button["callback_data"] for button in buttons if button["text"].removeprefix("• ").startswith(text))
        return self.presses_data(message, data)

    def presses_data(self, message: dict[str, Any], data: str) -> dict[str, Any]:
        """Presses a button by its data."""
        query = f"{self.user}{next(self._albums):08d}"
        answer = self.api.answers[query] = {}
        shown = {key: value for key, value in message.items() if key != "reply_to_message"}
        self.api.push(
            callback_query={
                "id": query,
                "from": self.account,
                "message": shown,
                "chat_instance": str(self.chat_id),
                "data": data,
            }
        )
        return answer

    @property
    def heard(self) -> list[dict[str, Any]]:
        """The bot's messages in this chat, as they are now."""
        return self.api.said(self.chat_id)

    async def hears(self, text: str, count: int = 1) -> dict[str, Any]:
        """Waits for so many messages of the bot that contain this text, or have it as caption; the latest one."""

        def found() -> Any:
            messages = [message for message in self.heard if text in message.get("text", message.get("caption", ""))]
            return messages if len(messages) >= count else None

        message: dict[str, Any] = (await self.api.until(found))[-1]
        return message

    async def receives(self, count: int = 1, within: float = 60.0) -> list[dict[str, Any]]:
        """Waits for so many files; their messages."""
        await self.api.until(lambda: len(self.documents) >= count, within)
        return self.documents

    @property
    def documents(self) -> list[dict[str, Any]]:
        return [message for message in self.heard if "document" in message]

    @property
    def films(self) -> list[dict[str, Any]]:
        return [message for message in self.heard if "animation" in message]

    @property
    def photos(self) -> list[dict[str, Any]]:
        """Results, status messages with a preview, and sheets."""
        return [message for message in self.heard if "photo" in message]

    def _sends(self, reply_to: dict[str, Any] | None, **content: Any) -> dict[str, Any]:
        message = self._message(reply_to, **content)
        self.delivers(message)
        return message

    def _message(self, reply_to: dict[str, Any] | None, **content: Any) -> dict[str, Any]:
        if reply_to is not None:
            content["reply_to_message"] = {key: value for key, value in reply_to.items() if key != "reply_to_message"}
        if self._topic is not None:
            content |= {"message_thread_id": self._topic, "is_topic_message": True}
        return self.api.message(self._chat, self.account, **content)

    def _picture(self, data: bytes, caption: str) -> dict[str, Any]:
        sizes = self.api._sizes_of(self.api.add_file(data))
        content: dict[str, Any] = {"photo": sizes}
        if caption:
            content |= {"caption": caption, "caption_entities": list(_entities(caption))}
        return content

    def _as_document(
        self, data: bytes, name: str = "picture.png", kind: str = "image/png", size: int | None = None
    ) -> dict[str, Any]:
        file_id = self.api.add_file(data, size)
        shown = {"file_name": name, "mime_type": kind, "file_size": size or len(data)}
        return {"document": {"file_id": file_id, "file_unique_id": file_id[-8:], **shown}}


def _entities(text: str) -> Iterator[dict[str, Any]]:
    start = 0
    for word in text.split(" "):
        kind = {"/": "bot_command", "@": "mention"}.get(word[:1])
        if kind:
            yield {"type": kind, "offset": start, "length": len(word)}
        start += len(word) + 1
