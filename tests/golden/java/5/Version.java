import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.Base64;
import java.util.Collections;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import org.apache.rocketmq.broker.BrokerController;
import org.apache.rocketmq.common.TopicConfig;
import org.apache.rocketmq.common.filter.ExpressionType;
import org.apache.rocketmq.common.message.*;
import org.apache.rocketmq.common.sysflag.MessageSysFlag;
import org.apache.rocketmq.remoting.protocol.subscription.SubscriptionGroupConfig;
import org.apache.rocketmq.store.ConsumeQueueExt;
import org.apache.rocketmq.store.StoreCheckpoint;
import org.apache.rocketmq.store.config.MessageStoreConfig;
import org.apache.rocketmq.store.queue.ConsumeQueueInterface;
import org.apache.rocketmq.store.queue.CqUnit;
import org.apache.rocketmq.store.queue.ReferredIterator;

/** What is another one in release line 5. */
class Version {
    static final String NAME = "5.5.0";
    static final boolean LONG_TOPICS = true;

    static void configure(MessageStoreConfig store, String kind) {
        store.setTimerWheelEnable(false);
        store.setMapperFileSizeBatchConsumeQueue(50 * 46);
        store.setEnabledAppendPropCRC(kind.equals("crc"));
    }

    static void registerFilters(BrokerController broker) {
        for (String group : new String[] {"sql-a", "sql-b"}) {
            broker.getConsumerFilterManager().register("filtered", group,
                group.equals("sql-a") ? "color = 'red'" : "color = 'blue'", ExpressionType.SQL92, 1);
        }
    }

    static void batchTopic(BrokerController broker, String topic) {
        TopicConfig config = new TopicConfig(topic, 2, 2);
        Map<String, String> attributes = new HashMap<>();
        attributes.put("+queue.type", "BatchCQ");
        config.setAttributes(attributes);
        broker.getTopicConfigManager().updateTopicConfig(config);
    }

    /** As SendMessageProcessor does with a batch for such a topic. */
    static MessageExtBrokerInner innerBatch(BrokerController broker, MessageExtBrokerInner inner, int count) {
        inner.setSysFlag(inner.getSysFlag() | MessageSysFlag.NEED_UNWRAP_FLAG | MessageSysFlag.INNER_BATCH_FLAG);
        MessageAccessor.putProperty(inner, MessageConst.PROPERTY_INNER_NUM, String.valueOf(count));
        inner.setPropertiesString(MessageDecoder.messageProperties2String(inner.getProperties()));
        return inner;
    }

    static byte[] encode(List<Message> messages) {
        return MessageDecoder.encodeMessages(messages);
    }

    static List<Map<String, Object>> queues(BrokerController broker, List<String[]> names) {
        List<Map<String, Object>> all = new ArrayList<>();
        for (String[] name : names) {
            ConsumeQueueInterface queue = broker.getMessageStore().getConsumeQueue(name[0], Integer.parseInt(name[1]));
            Map<String, Object> said = new LinkedHashMap<>();
            said.put("topic", name[0]);
            said.put("queueId", Integer.parseInt(name[1]));
            said.put("type", queue.getCQType().toString());
            said.put("min", queue.getMinOffsetInQueue());
            said.put("max", queue.getMaxOffsetInQueue());
            List<Map<String, Object>> entries = new ArrayList<>();
            ReferredIterator<CqUnit> units = queue.iterateFrom(queue.getMinOffsetInQueue());
            while (units != null && units.hasNext()) {
                entries.add(entry(units.next()));
            }
            if (units != null) {
                units.release();
            }
            said.put("entries", entries);
            all.add(said);
        }
        return all;
    }

    static Map<String, Object> entry(CqUnit unit) {
        Map<String, Object> entry = new TreeMap<>();
        entry.put("queueOffset", unit.getQueueOffset());
        entry.put("logOffset", unit.getPos());
        entry.put("size", unit.getSize());
        entry.put("tagsCode", unit.getTagsCode());
        entry.put("count", unit.getBatchNum());
        ConsumeQueueExt.CqExtUnit ext = unit.getCqExtUnit();
        if (ext != null) {
            entry.put("extStoreTimestamp", ext.getMsgStoreTime());
            entry.put("extBitMap", ext.getFilterBitMap() == null ? "" : Base64.getEncoder().encodeToString(ext.getFilterBitMap()));
        }
        return entry;
    }

    static Map<String, Object> checkpoint(String path) throws Exception {
        StoreCheckpoint checkpoint = new StoreCheckpoint(path);
        Map<String, Object> said = new TreeMap<>();
        said.put("log", checkpoint.getPhysicMsgTimestamp());
        said.put("queues", checkpoint.getLogicsMsgTimestamp());
        said.put("index", checkpoint.getIndexMsgTimestamp());
        said.put("masterFlushed", checkpoint.getMasterFlushedOffset());
        said.put("confirmed", checkpoint.getConfirmPhyOffset());
        return said;
    }

    static void tables(BrokerController broker) {
        TopicConfig config = new TopicConfig("with-attributes", 3, 5, 4);
        Map<String, String> attributes = new HashMap<>();
        attributes.put("+message.type", "FIFO");
        config.setAttributes(attributes);
        config.setOrder(true);
        broker.getTopicConfigManager().updateTopicConfig(config);
        for (String topic : new String[] {"t", "v6", "big", "many", "transactions", "filtered", "unfiltered"}) {
            broker.getTopicConfigManager().updateTopicConfig(new TopicConfig(topic, 4, 4));
        }
        SubscriptionGroupConfig group = new SubscriptionGroupConfig();
        group.setGroupName("group-a");
        group.setConsumeMessageOrderly(true);
        group.setRetryMaxTimes(5);
        group.setConsumeTimeoutMinute(7);
        group.setNotifyConsumerIdsChangedEnable(false);
        group.setGroupSysFlag(1);
        broker.getSubscriptionGroupManager().updateSubscriptionGroupConfig(group);
        broker.getSubscriptionGroupManager().updateForbidden("group-a", "t", 1, true);
    }
}
